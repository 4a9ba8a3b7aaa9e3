#include "llama-so8t-heads-load.h"
#include "so8t-format.h"
#include "so8t-kv.h"

#include "llama-impl.h"

#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>
#include <unordered_set>

static std::vector<so8t_label> so8t_load_labels(const gguf_context * ctx, const std::string & name) {
    auto key = [&](const char * pattern) { return format(pattern, name.c_str()); };

    const so8t_names known_actions(std::begin(so8t_action_names), std::end(so8t_action_names));
    const auto labels     = so8t_kv_strings(ctx, key(SO8T_KV_HEAD_LABELS), true);
    const auto actions    = so8t_kv_strings(ctx, key(SO8T_KV_HEAD_ACTIONS), true);
    const auto thresholds = so8t_kv_floats(ctx, key(SO8T_KV_HEAD_THRESHOLDS), true);
    if (labels.size() > SO8T_MAX_LABELS) {
        throw std::runtime_error(format("so8t: key '%s' has %zu labels, expected at most %d",
            key(SO8T_KV_HEAD_LABELS).c_str(), labels.size(), SO8T_MAX_LABELS));
    }
    if (labels.empty() || actions.size() != labels.size() || thresholds.size() != labels.size()) {
        throw std::runtime_error(format("so8t: head '%s' has %zu labels, %zu actions and %zu thresholds, expected the "
                                        "same number of each, one or more",
            name.c_str(), labels.size(), actions.size(), thresholds.size()));
    }
    std::vector<so8t_label> result;
    std::unordered_set<std::string> known_labels;
    for (size_t i = 0; i < labels.size(); ++i) {
        if (!so8t_is_text(labels[i]) || !known_labels.insert(labels[i]).second) {
            throw std::runtime_error(
                format("so8t: key '%s' has '%s' at %zu, expected different texts in UTF-8 that are "
                       "not empty",
                    key(SO8T_KV_HEAD_LABELS).c_str(), so8t_shown(labels[i]).c_str(), i));
        }
        const int action = so8t_index_of(known_actions, actions[i]);
        if (action < 0) {
            throw std::runtime_error(format("so8t: key '%s' has '%s', expected %s", key(SO8T_KV_HEAD_ACTIONS).c_str(),
                so8t_shown(actions[i]).c_str(), so8t_one_of(known_actions).c_str()));
        }
        if (!std::isfinite(thresholds[i])) {
            throw std::runtime_error(
                format("so8t: key '%s' has a value that is not finite", key(SO8T_KV_HEAD_THRESHOLDS).c_str()));
        }
        result.push_back({labels[i], thresholds[i], (llama_so8t_action) action});
    }
    return result;
}

// how the head was fitted: a text for people and programs that nothing here depends on
static std::string so8t_load_provenance(const gguf_context * ctx, const std::string & key) {
    const std::string text = so8t_kv_string(ctx, key, "");
    if (gguf_find_key(ctx, key.c_str()) >= 0 && (!so8t_is_text(text) || text.front() != '{')) {
        throw std::runtime_error(
            format("so8t: key '%s' is '%s', expected a JSON object in UTF-8", key.c_str(), so8t_shown(text).c_str()));
    }
    return text;
}

// how positions of an answer are combined, with the keys that only some of the ways have
static void so8t_load_aggregation(const gguf_context * ctx, so8t_head & head) {
    auto key = [&](const char * pattern) { return format(pattern, head.name.c_str()); };

    const so8t_names known(std::begin(so8t_aggregation_names), std::end(so8t_aggregation_names));
    head.aggregation = (llama_so8t_aggregation) so8t_kv_name(
        ctx, key(SO8T_KV_HEAD_AGGREGATION), known, head.aggregation);
    head.window           = so8t_kv_uint(ctx, key(SO8T_KV_HEAD_WINDOW), head.window);
    const bool has_window = gguf_find_key(ctx, key(SO8T_KV_HEAD_WINDOW).c_str()) >= 0;
    if (has_window != (head.aggregation == LLAMA_SO8T_AGGREGATION_WINDOW)) {
        throw std::runtime_error(
            format("so8t: key '%s' %s, expected one with the aggregation '%s' only", key(SO8T_KV_HEAD_WINDOW).c_str(),
                has_window ? "is there" : "is missing", so8t_aggregation_names[LLAMA_SO8T_AGGREGATION_WINDOW]));
    }
    if (has_window && (head.window < head.debounce || head.window > SO8T_MAX_DEBOUNCE)) {
        throw std::runtime_error(format("so8t: key '%s' is %u, expected debounce, which is %u, to %d",
            key(SO8T_KV_HEAD_WINDOW).c_str(), head.window, head.debounce, SO8T_MAX_DEBOUNCE));
    }
}

// how a prompt is read; after so8t_load_aggregation
static void so8t_load_prompt_aggregation(const gguf_context * ctx, so8t_head & head) {
    auto key = [&](const char * pattern) { return format(pattern, head.name.c_str()); };

    const so8t_names known(std::begin(so8t_prompt_aggregation_names), std::end(so8t_prompt_aggregation_names));
    const auto has = [&](llama_so8t_prompt_aggregation wanted) {
        return std::find(head.prompt_aggregations.begin(), head.prompt_aggregations.end(), wanted) !=
               head.prompt_aggregations.end();
    };
    const auto names = so8t_kv_strings(ctx, key(SO8T_KV_HEAD_PROMPT_AGGREGATION), false);
    if (gguf_find_key(ctx, key(SO8T_KV_HEAD_PROMPT_AGGREGATION).c_str()) >= 0) {
        head.prompt_aggregations.clear();
    }
    for (const auto & name : names) {
        const int index = so8t_index_of(known, name);
        if (index < 0 || has((llama_so8t_prompt_aggregation) index)) {
            throw std::runtime_error(format("so8t: key '%s' has '%s', expected different ones of %s",
                key(SO8T_KV_HEAD_PROMPT_AGGREGATION).c_str(), so8t_shown(name).c_str(), so8t_one_of(known).c_str()));
        }
        head.prompt_aggregations.push_back((llama_so8t_prompt_aggregation) index);
    }
    if (head.prompt_aggregations.empty()) {
        throw std::runtime_error(
            format("so8t: key '%s' is empty, expected one or more", key(SO8T_KV_HEAD_PROMPT_AGGREGATION).c_str()));
    }
    const bool has_thresholds = gguf_find_key(ctx, key(SO8T_KV_HEAD_PROMPT_THRESHOLDS).c_str()) >= 0;
    head.prompt_thresholds    = so8t_kv_floats(ctx, key(SO8T_KV_HEAD_PROMPT_THRESHOLDS), false);
    for (size_t i = 0; !has_thresholds && i < head.prompt_aggregations.size(); ++i) {
        for (const auto & label : head.labels) {
            head.prompt_thresholds.push_back(label.threshold);
        }
    }
    if (head.prompt_thresholds.size() != head.prompt_aggregations.size() * head.labels.size() ||
        !std::all_of(head.prompt_thresholds.begin(), head.prompt_thresholds.end(),
            [](float value) { return std::isfinite(value); })) {
        throw std::runtime_error(format("so8t: key '%s' has %zu values, expected %zu that are finite: one for each "
                                        "label of each prompt_aggregation",
            key(SO8T_KV_HEAD_PROMPT_THRESHOLDS).c_str(), head.prompt_thresholds.size(),
            head.prompt_aggregations.size() * head.labels.size()));
    }
    const bool needs_alpha = head.aggregation == LLAMA_SO8T_AGGREGATION_EMA || has(LLAMA_SO8T_PROMPT_AGGREGATION_EMA);
    head.ema_alpha         = so8t_kv_float(ctx, key(SO8T_KV_HEAD_EMA_ALPHA), head.ema_alpha);
    if ((gguf_find_key(ctx, key(SO8T_KV_HEAD_EMA_ALPHA).c_str()) >= 0) != needs_alpha ||
        (needs_alpha && !(head.ema_alpha > 0 && head.ema_alpha <= 1))) {
        throw std::runtime_error(format("so8t: key '%s' is %s, expected a number above 0, at most 1, with the "
                                        "aggregation '%s' only",
            key(SO8T_KV_HEAD_EMA_ALPHA).c_str(),
            head.ema_alpha != 0 ? std::to_string(head.ema_alpha).c_str() : "0 or missing",
            so8t_aggregation_names[LLAMA_SO8T_AGGREGATION_EMA]));
    }
}

so8t_head so8t_load_head_keys(const gguf_context * ctx, const std::string & name, uint32_t n_vocab) {
    auto key = [&](const char * pattern) { return format(pattern, name.c_str()); };

    const so8t_names known_scopes(std::begin(so8t_scope_names), std::end(so8t_scope_names));
    const so8t_names known_rules(std::begin(so8t_rule_names), std::end(so8t_rule_names));
    const so8t_names known_links(std::begin(so8t_link_names), std::end(so8t_link_names));

    so8t_head head;
    head.name           = name;
    head.labels         = so8t_load_labels(ctx, name);
    head.temperature    = so8t_kv_float(ctx, key(SO8T_KV_HEAD_TEMPERATURE), head.temperature);
    head.debounce       = so8t_kv_uint(ctx, key(SO8T_KV_HEAD_DEBOUNCE), head.debounce);
    head.representation = so8t_kv_int(ctx, key(SO8T_KV_HEAD_REPRESENTATION), head.representation);
    head.prompt_token   = so8t_kv_int(ctx, key(SO8T_KV_HEAD_PROMPT_TOKEN), head.prompt_token);
    if (!(head.temperature > 0) || !std::isfinite(head.temperature)) {
        throw std::runtime_error(format("so8t: key '%s' is %f, expected a number above 0",
            key(SO8T_KV_HEAD_TEMPERATURE).c_str(), head.temperature));
    }
    if (head.debounce < 1 || head.debounce > SO8T_MAX_DEBOUNCE) {
        throw std::runtime_error(format("so8t: key '%s' is %u, expected 1 to %d", key(SO8T_KV_HEAD_DEBOUNCE).c_str(),
            head.debounce, SO8T_MAX_DEBOUNCE));
    }
    if (gguf_find_key(ctx, key(SO8T_KV_HEAD_PROMPT_TOKEN).c_str()) >= 0 &&
        (head.prompt_token < 0 || (n_vocab > 0 && head.prompt_token >= (llama_token) n_vocab))) {
        throw std::runtime_error(format("so8t: key '%s' is %d, expected a token of the vocabulary, 0 to %u",
            key(SO8T_KV_HEAD_PROMPT_TOKEN).c_str(), head.prompt_token, n_vocab - 1));
    }
    if (head.representation < LLAMA_SO8T_REPRESENTATION_VECTOR ||
        head.representation > LLAMA_SO8T_REPRESENTATION_SPINOR_MINUS) {
        throw std::runtime_error(format(
            "so8t: key '%s' is %d, expected 0, 1 or 2", key(SO8T_KV_HEAD_REPRESENTATION).c_str(), head.representation));
    }
    head.scope = (llama_so8t_scope) (so8t_kv_name(ctx, key(SO8T_KV_HEAD_SCOPE), known_scopes, head.scope - 1) + 1);
    head.rule  = (llama_so8t_rule) so8t_kv_name(ctx, key(SO8T_KV_HEAD_RULE), known_rules, head.rule);
    head.link  = (llama_so8t_link) so8t_kv_name(ctx, key(SO8T_KV_HEAD_LINK), known_links, head.link);
    if (head.link == LLAMA_SO8T_LINK_SOFTMAX && head.labels.size() < 2) {
        throw std::runtime_error(format("so8t: head '%s' has 1 label, expected two or more with the link '%s'",
            name.c_str(), so8t_link_names[head.link]));
    }
    if (head.link == LLAMA_SO8T_LINK_SIGMOID && head.rule == LLAMA_SO8T_RULE_ARGMAX) {
        throw std::runtime_error(
            format("so8t: head '%s' has the link '%s' and the rule '%s', expected the rule '%s' for "
                   "labels of which several may hold",
                name.c_str(), so8t_link_names[head.link], so8t_rule_names[head.rule],
                so8t_rule_names[LLAMA_SO8T_RULE_THRESHOLD]));
    }
    so8t_load_aggregation(ctx, head);
    so8t_load_prompt_aggregation(ctx, head);
    head.provenance = so8t_load_provenance(ctx, key(SO8T_KV_HEAD_PROVENANCE));
    return head;
}

so8t_source so8t_load_source_keys(const gguf_context * ctx, const so8t_head & head, int64_t n_layer) {
    const so8t_names known_norms(std::begin(so8t_tap_norm_names), std::end(so8t_tap_norm_names));
    const std::string key = format(SO8T_KV_HEAD_TAPS, head.name.c_str());

    so8t_source source;
    source.taps = so8t_kv_ints(ctx, key, false);
    source.norm = (llama_so8t_tap_norm) so8t_kv_name(
        ctx, format(SO8T_KV_HEAD_TAP_NORM, head.name.c_str()), known_norms, source.norm);
    if (gguf_find_key(ctx, key.c_str()) < 0) {
        source.taps = {SO8T_TAP_FINAL_NORM};
    }
    if (source.taps.empty()) {
        throw std::runtime_error(format("so8t: key '%s' is empty, expected one layer or more", key.c_str()));
    }
    for (auto tap = source.taps.begin(); tap != source.taps.end(); ++tap) {
        if (*tap < SO8T_TAP_FINAL_NORM || *tap > n_layer || std::find(source.taps.begin(), tap, *tap) != tap) {
            throw std::runtime_error(format("so8t: key '%s' has %d, expected different layers from %d to %d",
                key.c_str(), *tap, SO8T_TAP_FINAL_NORM, (int) n_layer));
        }
    }
    return source;
}
