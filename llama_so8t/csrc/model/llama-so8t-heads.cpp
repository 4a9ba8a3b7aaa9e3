#include "llama-so8t-heads.h"

#include "llama-so8t.h"
#include "so8t-format.h"
#include "so8t-rules.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

static const char * const SO8T_ACTION_NAMES[] = {"allow", "escalate", "refuse"};
static const char * const SO8T_SCOPE_NAMES[]  = {"prompt", "answer", "both"}; // enum value - 1

//
// loading
//

static so8t_head so8t_load_head(const gguf_context * ctx, const std::string & name) {
    auto key = [&](const char * pattern) { return format(pattern, name.c_str()); };

    so8t_head head;
    head.name = name;

    const auto labels     = so8t_kv_strings(ctx, key(SO8T_KV_HEAD_LABELS), true);
    const auto actions    = so8t_kv_strings(ctx, key(SO8T_KV_HEAD_ACTIONS), true);
    const auto thresholds = so8t_kv_floats(ctx, key(SO8T_KV_HEAD_THRESHOLDS), true);
    if (labels.size() < 2 || actions.size() != labels.size() || thresholds.size() != labels.size()) {
        throw std::runtime_error(format("so8t: head '%s' has %zu labels, %zu actions and %zu thresholds, expected the "
                                        "same number of each, two or more",
            name.c_str(), labels.size(), actions.size(), thresholds.size()));
    }
    for (size_t i = 0; i < labels.size(); ++i) {
        const int action = so8t_index_of(SO8T_ACTION_NAMES, 3, actions[i]);
        if (action < 0) {
            throw std::runtime_error(format("so8t: key '%s' has '%s', expected allow, escalate or refuse",
                key(SO8T_KV_HEAD_ACTIONS).c_str(), actions[i].c_str()));
        }
        if (!std::isfinite(thresholds[i])) {
            throw std::runtime_error(
                format("so8t: key '%s' has a value that is not finite", key(SO8T_KV_HEAD_THRESHOLDS).c_str()));
        }
        head.labels.push_back({labels[i], thresholds[i], (llama_so8t_action) action});
    }

    head.temperature    = so8t_kv_float(ctx, key(SO8T_KV_HEAD_TEMPERATURE), head.temperature);
    head.debounce       = so8t_kv_uint(ctx, key(SO8T_KV_HEAD_DEBOUNCE), head.debounce);
    head.representation = so8t_kv_int(ctx, key(SO8T_KV_HEAD_REPRESENTATION), head.representation);
    head.prompt_token   = so8t_kv_int(ctx, key(SO8T_KV_HEAD_PROMPT_TOKEN), head.prompt_token);
    head.activation     = so8t_kv_string(ctx, key(SO8T_KV_HEAD_ACTIVATION), head.activation);
    if (!(head.temperature > 0) || !std::isfinite(head.temperature)) {
        throw std::runtime_error(format("so8t: key '%s' is %f, expected a number above 0",
            key(SO8T_KV_HEAD_TEMPERATURE).c_str(), head.temperature));
    }
    if (head.debounce < 1) {
        throw std::runtime_error(format("so8t: key '%s' is 0, expected 1 or more", key(SO8T_KV_HEAD_DEBOUNCE).c_str()));
    }
    const std::string scope = so8t_kv_string(ctx, key(SO8T_KV_HEAD_SCOPE), "both");
    const int i_scope       = so8t_index_of(SO8T_SCOPE_NAMES, 3, scope);
    if (i_scope < 0) {
        throw std::runtime_error(format(
            "so8t: key '%s' is '%s', expected prompt, answer or both", key(SO8T_KV_HEAD_SCOPE).c_str(), scope.c_str()));
    }
    head.scope = (llama_so8t_scope) (i_scope + 1);
    return head;
}

static int32_t so8t_load_stem(llama_model_base & model, llama_model_loader & ml, so8t_heads & result,
    const so8t_head & head, const std::string & name) {
    for (size_t i = 0; i < result.stems.size(); ++i) {
        if (result.stems[i].name == name) {
            return i;
        }
    }
    static const char * const activations[] = {"gelu", "tanh", "rmsnorm"};
    if (so8t_index_of(activations, 3, head.activation) < 0) {
        throw std::runtime_error(
            format("so8t: head '%s' has the stem '%s' and activation '%s', expected gelu, tanh or rmsnorm",
                head.name.c_str(), name.c_str(), head.activation.c_str()));
    }
    const LLM_TN tn(model.arch);
    const std::string weight = format(SO8T_TENSOR_WEIGHT, name.c_str());
    const std::string bias   = format(SO8T_TENSOR_BIAS, name.c_str());
    const std::string norm   = format(SO8T_TENSOR_NORM, name.c_str());

    const auto * meta = ml.get_tensor_meta(tn(LLM_TENSOR_SO8T_STEM, weight.c_str()).str().c_str());
    if (!meta) {
        throw std::runtime_error(
            format("so8t: head '%s': tensor 'so8t_stem.%s' is missing", head.name.c_str(), weight.c_str()));
    }
    const int64_t n_embd  = model.hparams.n_embd;
    const int64_t n_inner = meta->ne[1];

    so8t_stem stem;
    stem.name   = name;
    stem.weight = model.create_tensor(tn(LLM_TENSOR_SO8T_STEM, weight.c_str()), {n_embd, n_inner}, 0);
    stem.bias   = model.create_tensor(tn(LLM_TENSOR_SO8T_STEM, bias.c_str()), {n_inner}, model.TENSOR_NOT_REQUIRED);
    if (head.activation == "rmsnorm") {
        stem.norm = model.create_tensor(tn(LLM_TENSOR_SO8T_STEM, norm.c_str()), {n_inner}, 0);
    }
    result.stems.push_back(stem);
    return (int32_t) result.stems.size() - 1;
}

void so8t_load_heads(llama_model_base & model, llama_model_loader & ml) {
    const auto names = so8t_kv_strings(ml.metadata, SO8T_KV_HEADS, false);
    if (names.empty()) {
        return;
    }
    const LLM_TN tn(model.arch);

    auto result = std::make_shared<so8t_heads>();
    for (const auto & name : names) {
        if (std::any_of(
                result->heads.begin(), result->heads.end(), [&](const so8t_head & h) { return h.name == name; })) {
            throw std::runtime_error(format("so8t: key '" SO8T_KV_HEADS "' names '%s' twice", name.c_str()));
        }
        so8t_head head         = so8t_load_head(ml.metadata, name);
        const int64_t n_labels = head.labels.size();
        int64_t n_in           = model.hparams.n_embd;

        const std::string stem = so8t_kv_string(ml.metadata, format(SO8T_KV_HEAD_STEM, name.c_str()), "");
        if (!stem.empty()) {
            head.stem = so8t_load_stem(model, ml, *result, head, stem);
            n_in      = result->stems[head.stem].weight->ne[1];
        } else if (head.activation != "none") {
            throw std::runtime_error(
                format("so8t: head '%s' has the activation '%s' and no stem", name.c_str(), head.activation.c_str()));
        }
        head.weight = model.create_tensor(
            tn(LLM_TENSOR_SO8T_HEAD, format(SO8T_TENSOR_WEIGHT, name.c_str()).c_str()), {n_in, n_labels}, 0);
        head.bias   = model.create_tensor(tn(LLM_TENSOR_SO8T_HEAD, format(SO8T_TENSOR_BIAS, name.c_str()).c_str()),
            {n_labels}, model.TENSOR_NOT_REQUIRED);
        head.offset = result->n_values;

        result->n_values += n_labels;
        result->heads.push_back(std::move(head));
    }
    model.so8t = result;
}

void so8t_save(const llama_model & model, gguf_context * ctx) {
    for (const auto & [name, tensor] : model.tensors_by_name) {
        if (name.find("so8t_") != std::string::npos) {
            gguf_add_tensor(ctx, tensor);
        }
    }
    so8t_save_rotations(model, ctx);
    if (!model.so8t) {
        return;
    }
    std::vector<std::string> names;
    for (const auto & head : model.so8t->heads) {
        auto key = [&](const char * pattern) { return format(pattern, head.name.c_str()); };

        std::vector<std::string> labels;
        std::vector<std::string> actions;
        std::vector<float> thresholds;
        for (const auto & label : head.labels) {
            labels.push_back(label.name);
            actions.push_back(SO8T_ACTION_NAMES[label.action]);
            thresholds.push_back(label.threshold);
        }
        so8t_set_strings(ctx, key(SO8T_KV_HEAD_LABELS), labels);
        so8t_set_strings(ctx, key(SO8T_KV_HEAD_ACTIONS), actions);
        gguf_set_arr_data(
            ctx, key(SO8T_KV_HEAD_THRESHOLDS).c_str(), GGUF_TYPE_FLOAT32, thresholds.data(), thresholds.size());
        gguf_set_val_f32(ctx, key(SO8T_KV_HEAD_TEMPERATURE).c_str(), head.temperature);
        gguf_set_val_u32(ctx, key(SO8T_KV_HEAD_DEBOUNCE).c_str(), head.debounce);
        gguf_set_val_i32(ctx, key(SO8T_KV_HEAD_REPRESENTATION).c_str(), head.representation);
        gguf_set_val_str(ctx, key(SO8T_KV_HEAD_ACTIVATION).c_str(), head.activation.c_str());
        gguf_set_val_str(ctx, key(SO8T_KV_HEAD_SCOPE).c_str(), SO8T_SCOPE_NAMES[head.scope - 1]);
        if (head.prompt_token != LLAMA_TOKEN_NULL) {
            gguf_set_val_i32(ctx, key(SO8T_KV_HEAD_PROMPT_TOKEN).c_str(), head.prompt_token);
        }
        if (head.stem >= 0) {
            gguf_set_val_str(ctx, key(SO8T_KV_HEAD_STEM).c_str(), model.so8t->stems[head.stem].name.c_str());
        }
        names.push_back(head.name);
    }
    so8t_set_strings(ctx, SO8T_KV_HEADS, names);
}

//
// graph
//

static ggml_tensor * so8t_build_stem(
    llm_graph_context & llm, const so8t_stem & stem, const std::string & activation, ggml_tensor * f) {
    ggml_context * ctx = llm.ctx0;

    ggml_tensor * cur = ggml_mul_mat(ctx, stem.weight, f); // [inner, n_outputs]
    if (stem.bias) {
        cur = ggml_add(ctx, cur, stem.bias);
    }
    if (activation == "rmsnorm") {
        cur = ggml_mul(ctx, ggml_rms_norm(ctx, cur, llm.hparams.f_norm_rms_eps), stem.norm);
    } else if (activation == "tanh") {
        cur = ggml_tanh(ctx, cur);
    } else {
        cur = ggml_gelu_erf(ctx, cur);
    }
    return cur;
}

void so8t_build_heads(llm_graph_context & llm, const llama_model & model) {
    ggml_tensor * f = llm.res->t_embd; // [n_embd, n_outputs], after the final norm
    if (!model.so8t || !f) {
        return;
    }
    ggml_context * ctx = llm.ctx0;

    std::vector<ggml_tensor *> stems(model.so8t->stems.size(), nullptr);

    ggml_tensor * values = nullptr;
    for (const auto & head : model.so8t->heads) {
        ggml_tensor * cur = f;
        if (head.stem >= 0) {
            auto & stem = stems[head.stem];
            if (!stem) {
                stem = so8t_build_stem(llm, model.so8t->stems[head.stem], head.activation, f);
                llm.cb(stem, "so8t_stem", -1);
            }
            cur = stem;
        }
        cur = ggml_mul_mat(ctx, head.weight, cur); // [n_labels, n_outputs]
        if (head.bias) {
            cur = ggml_add(ctx, cur, head.bias);
        }
        llm.cb(cur, "so8t_head", -1);
        values = values ? ggml_concat(ctx, values, cur, 0) : cur;
    }
    llm.cb(values, "so8t_heads", -1);

    ggml_set_output(values);
    ggml_build_forward_expand(llm.gf, values);
    llm.res->t_so8t_heads = values; // [n_values, n_outputs]
}

//
// values of the outputs
//

void so8t_head_values::reserve(const so8t_heads * heads, uint32_t n_outputs_max) {
    if (heads && data.empty()) {
        n_values = heads->n_values;
        data.resize((size_t) n_values * n_outputs_max); // once: later copies may still be on their way
    }
}

void so8t_head_values::extract(ggml_backend_sched_t sched, ggml_tensor * values, int64_t i_output, int64_t n_outputs) {
    if (n_values == 0 || n_outputs == 0) {
        return;
    }
    float * dst = data.data() + i_output * n_values;
    GGML_ASSERT((size_t) ((i_output + n_outputs) * n_values) <= data.size());
    if (!values) {
        std::fill_n(dst, n_outputs * n_values, std::numeric_limits<float>::quiet_NaN()); // fail closed
        return;
    }
    ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(sched, values);
    GGML_ASSERT(backend != nullptr);
    ggml_backend_tensor_get_async(backend, values, dst, 0, n_outputs * n_values * sizeof(float));
}

void so8t_head_values::swap(uint64_t i0, uint64_t i1) {
    std::swap_ranges(data.begin() + i0 * n_values, data.begin() + (i0 + 1) * n_values, data.begin() + i1 * n_values);
}

const float * llama_context::get_so8t_heads_ith(int32_t i) {
    output_reorder();
    try {
        return so8t_values.n_values == 0 ? nullptr :
                                           so8t_values.data.data() + output_resolve_row(i) * so8t_values.n_values;
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: invalid output id %d, reason: %s\n", __func__, i, err.what());
        return nullptr;
    }
}

//
// C API
//

static const so8t_head & so8t_get(const llama_model * model, int32_t head) {
    GGML_ASSERT(model->so8t && head >= 0 && head < (int32_t) model->so8t->heads.size() && "no such head");
    return model->so8t->heads[head];
}

int32_t llama_so8t_n_heads(const llama_model * model) {
    return model->so8t ? (int32_t) model->so8t->heads.size() : 0;
}

llama_so8t_head llama_so8t_get_head(const llama_model * model, int32_t head) {
    const auto & h = so8t_get(model, head);
    return {h.name.c_str(), (int32_t) h.labels.size(), h.temperature, (int32_t) h.debounce, h.scope, h.prompt_token,
        (llama_so8t_representation) h.representation};
}

llama_so8t_label llama_so8t_get_label(const llama_model * model, int32_t head, int32_t label) {
    const auto & h = so8t_get(model, head);
    GGML_ASSERT(label >= 0 && label < (int32_t) h.labels.size() && "no such label");
    return {h.labels[label].name.c_str(), h.labels[label].threshold, h.labels[label].action};
}

const char * llama_so8t_action_name(llama_so8t_action action) {
    return SO8T_ACTION_NAMES[action];
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
    const int n_labels   = h.labels.size();

    std::fill_n(probs, n_labels, std::numeric_limits<float>::quiet_NaN());
    if (!logits || !std::all_of(logits, logits + n_labels, [](float v) { return std::isfinite(v); })) {
        return false;
    }
    const float max = *std::max_element(logits, logits + n_labels);
    double sum      = 0;
    for (int l = 0; l < n_labels; ++l) {
        probs[l]  = std::exp((logits[l] - max) / h.temperature);
        sum      += probs[l];
    }
    for (int l = 0; l < n_labels; ++l) {
        probs[l] /= sum;
    }
    return true;
}

llama_so8t_action llama_so8t_get_action_ith(llama_context * ctx, int32_t i) {
    const llama_model & model = ctx->get_model();
    const auto ask            = [&](int32_t head) {
        so8t_head_rule rule;
        for (const auto & label : so8t_get(&model, head).labels) {
            rule.thresholds.push_back(label.threshold);
            rule.actions.push_back(label.action);
        }
        std::vector<float> probs(rule.thresholds.size());
        std::vector<int32_t> n_above;
        llama_so8t_get_probs_ith(ctx, head, i, probs.data());
        return so8t_judge_head(rule, true, probs.data(), n_above); // as of a prompt: one position, so no debounce
    };
    return so8t_judge(llama_so8t_n_heads(&model), ask).action;
}
