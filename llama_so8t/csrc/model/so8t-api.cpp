#include "so8t.h"

#include "llama-so8t-heads.h"
#include "llama-so8t-token-memory.h"
#include "llama-so8t.h"
#include "so8t-format.h"
#include "so8t-rules.h"
#include "so8t-text-aggregation.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

static_assert(LLAMA_SO8T_ACTION_REFUSE + 1 == std::size(so8t_action_names), "so8t.h has other actions than the format");
static_assert(LLAMA_SO8T_SCOPE_BOTH == std::size(so8t_scope_names), "so8t.h has other scopes than the format");
static_assert(LLAMA_SO8T_RULE_ARGMAX + 1 == std::size(so8t_rule_names), "so8t.h has other rules than the format");
static_assert(LLAMA_SO8T_LINK_SIGMOID + 1 == std::size(so8t_link_names), "so8t.h has other links than the format");
static_assert(LLAMA_SO8T_FORM_ATTENTION + 1 == std::size(so8t_form_names), "so8t.h has other forms than the format");
static_assert(
    LLAMA_SO8T_TAP_NORM_RMS + 1 == std::size(so8t_tap_norm_names), "so8t.h has other norms of taps than the format");

static_assert(LLAMA_SO8T_AGGREGATION_MAX + 1 == std::size(so8t_aggregation_names),
    "so8t.h has other aggregations than the format");
static_assert(LLAMA_SO8T_PROMPT_AGGREGATION_WINDOW16 + 1 == std::size(so8t_prompt_aggregation_names),
    "so8t.h has other aggregations of prompts than the format");

//
// heads
//

static const so8t_head & so8t_get(const llama_model * model, int32_t head) {
    GGML_ASSERT(model->so8t_heads && head >= 0 && head < (int32_t) model->so8t_heads->heads.size() && "no such head");
    return model->so8t_heads->heads[head];
}

int32_t llama_so8t_n_heads(const llama_model * model) {
    return model->so8t_heads ? (int32_t) model->so8t_heads->heads.size() : 0;
}

llama_so8t_head llama_so8t_get_head(const llama_model * model, int32_t head) {
    const auto & h      = so8t_get(model, head);
    const auto & source = model->so8t_heads->sources[h.source];
    return {h.name.c_str(), (int32_t) h.labels.size(), h.temperature, (int32_t) h.debounce, h.scope, h.prompt_token,
        (llama_so8t_representation) h.representation, h.rule, h.fitted, model->so8t_heads->form_of(h), h.link,
        source.taps.data(), (int32_t) source.taps.size(), source.norm,
        h.stem < 0 ? 0 : (int32_t) model->so8t_heads->stems[h.stem].sliding_window, h.aggregation, h.ema_alpha,
        (int32_t) h.window, h.prompt_aggregations.data(), (int32_t) h.prompt_aggregations.size(),
        h.prompt_thresholds.data(), h.depends_on};
}

llama_so8t_label llama_so8t_get_label(const llama_model * model, int32_t head, int32_t label) {
    const auto & h = so8t_get(model, head);
    GGML_ASSERT(label >= 0 && label < (int32_t) h.labels.size() && "no such label");
    return {h.labels[label].name.c_str(), h.labels[label].threshold, h.labels[label].action};
}

const char * llama_so8t_action_name(llama_so8t_action action) {
    return so8t_action_names[action];
}

const char * llama_so8t_rule_name(llama_so8t_rule rule) {
    return so8t_rule_names[rule];
}

const char * llama_so8t_link_name(llama_so8t_link link) {
    return so8t_link_names[link];
}

const char * llama_so8t_form_name(llama_so8t_form form) {
    return so8t_form_names[form];
}

const char * llama_so8t_tap_norm_name(llama_so8t_tap_norm norm) {
    return so8t_tap_norm_names[norm];
}

const char * llama_so8t_aggregation_name(llama_so8t_aggregation aggregation) {
    return so8t_aggregation_names[aggregation];
}

const char * llama_so8t_prompt_aggregation_name(llama_so8t_prompt_aggregation aggregation) {
    return so8t_prompt_aggregation_names[aggregation];
}

const char * llama_so8t_representation_name(llama_so8t_representation representation) {
    switch (representation) {
        case LLAMA_SO8T_REPRESENTATION_VECTOR:       return "vector";
        case LLAMA_SO8T_REPRESENTATION_SPINOR_PLUS:  return "spinor+";
        case LLAMA_SO8T_REPRESENTATION_SPINOR_MINUS: return "spinor-";
    }
    return "unknown";
}

const float * llama_so8t_get_logits_ith(llama_context * ctx, int32_t head, int32_t i) {
    const auto & h = so8t_get(&ctx->get_model(), head);
    ctx->synchronize();
    const float * values = ctx->get_so8t_heads_ith(i);
    return values ? values + h.offset : nullptr;
}

bool llama_so8t_get_probs_ith(llama_context * ctx, int32_t head, int32_t i, float * probs) {
    const auto & h       = so8t_get(&ctx->get_model(), head);
    const float * logits = llama_so8t_get_logits_ith(ctx, head, i);
    if (!logits) {
        std::fill_n(probs, h.labels.size(), std::numeric_limits<float>::quiet_NaN());
        return false;
    }
    return so8t_probabilities(logits, h.labels.size(), h.temperature, h.link, probs);
}

bool llama_so8t_get_text_probs(
    llama_context * ctx, int32_t head, int32_t aggregation, int32_t i, llama_pos p0, llama_pos p1, float * probs) {
    const auto & h  = so8t_get(&ctx->get_model(), head);
    const auto kind = aggregation >= 0 && aggregation < (int32_t) h.prompt_aggregations.size() ?
                          h.prompt_aggregations[aggregation] :
                          LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN;
    ctx->synchronize();
    const auto * memory       = dynamic_cast<const so8t_token_memory *>(ctx->get_memory());
    const llama_seq_id seq_id = ctx->get_so8t_seq_id_ith(i);
    std::vector<float> values;
    if (kind != LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN && memory && seq_id >= 0 && p0 < p1) {
        values = memory->read_values(seq_id, p0, p1, h);
    }
    if (values.size() != (size_t) std::max(0, p1 - p0) * h.labels.size()) { // each position once
        values.clear();
    }
    return so8t_aggregate_text({kind, h.ema_alpha, h.temperature, h.link}, values, h.labels.size(), probs);
}

llama_so8t_action llama_so8t_get_action_ith(llama_context * ctx, int32_t i) {
    const llama_model & model = ctx->get_model();
    const auto depends_on     = [&](int32_t head) { return so8t_get(&model, head).depends_on; };
    const auto ask            = [&](int32_t head) {
        so8t_head_rule rule;
        rule.rule   = so8t_get(&model, head).rule;
        rule.fitted = so8t_get(&model, head).fitted;
        rule.link   = so8t_get(&model, head).link;
        for (const auto & label : so8t_get(&model, head).labels) {
            rule.thresholds.push_back(label.threshold);
            rule.actions.push_back(label.action);
        }
        std::vector<float> probs(rule.thresholds.size());
        so8t_head_run run;
        llama_so8t_get_probs_ith(ctx, head, i, probs.data());
        return so8t_judge_head(rule, true, 0, probs.data(), run); // as of a prompt: one position, so no debounce
    };
    return so8t_judge(llama_so8t_n_heads(&model), depends_on, ask).action;
}

//
// rotations
//

int32_t llama_so8t_n_rotations(const llama_model * model) {
    const auto * so8t = dynamic_cast<const llama_model_so8t *>(model);
    return so8t ? so8t->sites_explicit.size() + so8t->sites_folded.size() : 0;
}

llama_so8t_rotation llama_so8t_get_rotation(const llama_model * model, int32_t rotation) {
    GGML_ASSERT(rotation >= 0 && rotation < llama_so8t_n_rotations(model) && "no such rotation");
    const auto & so8t        = *dynamic_cast<const llama_model_so8t *>(model);
    const int32_t n_explicit = so8t.sites_explicit.size();
    const bool folded        = rotation >= n_explicit;
    return {so8t_site_names[folded ? so8t.sites_folded[rotation - n_explicit] : so8t.sites_explicit[rotation]], folded};
}
