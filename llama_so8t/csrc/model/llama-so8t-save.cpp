#include "llama-so8t-save.h"

#include "llama-so8t-heads.h"
#include "llama-so8t-stems.h"
#include "llama-so8t.h"
#include "so8t-algebra.h"
#include "so8t-format.h"
#include "so8t-kv.h"

#include "llama-impl.h"
#include "llama-model.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <stdexcept>
#include <string>
#include <vector>

static void so8t_save_sites(gguf_context * ctx, const char * key, const std::vector<so8t_site> & sites) {
    std::vector<std::string> names;
    for (const auto site : sites) {
        names.push_back(so8t_site_names[site]);
    }
    so8t_set_strings(ctx, key, names);
}

// The generators, which have left model.tensors_by_name. Their data is that of the model, which is not freed before the
// file is written.
static void so8t_save_generators(const llama_model_so8t & so8t, gguf_context * ctx) {
    if (so8t.out_gen) {
        gguf_add_tensor(ctx, so8t.out_gen);
    }
    const ggml_init_params params = {so8t.so8t_layers.size() * ggml_tensor_overhead(), nullptr, /*no_alloc =*/true};
    const ggml_context_ptr names(ggml_init(params));
    for (size_t il = 0; il < so8t.so8t_layers.size(); ++il) {
        const auto & generators = so8t.so8t_layers[il].generators;
        if (!so8t_is_one_tensor(generators)) {
            throw std::runtime_error(format("so8t: the generators of layer %zu have different numbers of rows for the "
                                            "blocks, expected the same: this model of version 1 cannot be saved",
                il));
        }
        if (generators.rows.empty()) {
            continue;
        }
        const LLM_TN_IMPL tn = LLM_TN(so8t.arch)(LLM_TENSOR_SO8T_LAYER, SO8T_TENSOR_LAYER_GENS, (int) il);
        ggml_tensor * tensor = ggml_new_tensor_2d(
            names.get(), GGML_TYPE_F32, SO8T_N_GENERATORS, generators.rows.size() / SO8T_N_GENERATORS);
        ggml_set_name(tensor, tn.str().c_str());
        tensor->data = const_cast<float *>(generators.rows.data());
        gguf_add_tensor(ctx, tensor);
    }
}

// keys of the architecture, and the generators
static void so8t_save_arch(const llama_model_so8t & so8t, gguf_context * ctx) {
    gguf_set_val_u32(ctx, SO8T_KV_ROTATION_DIMENSION, SO8T_DIM);
    gguf_set_val_str(ctx, SO8T_KV_BASE_ARCHITECTURE, so8t.family->name);
    so8t_save_sites(ctx, SO8T_KV_ROTATION_EXPLICIT, so8t.sites_explicit);
    so8t_save_sites(ctx, SO8T_KV_ROTATION_FOLDED, so8t.sites_folded);
    gguf_set_arr_data(ctx, SO8T_KV_ATTN_HEAD_REPRESENTATION, GGUF_TYPE_INT32, so8t.head_representation.data(),
        so8t.head_representation.size());
    gguf_set_arr_data(ctx, SO8T_KV_ATTN_HEAD_KV_REPRESENTATION, GGUF_TYPE_INT32, so8t.head_kv_representation.data(),
        so8t.head_kv_representation.size());
    // llama.cpp writes it for every model; with it a file would be taken for an embedding model
    gguf_remove_key(ctx, LLM_KV(LLM_ARCH_SO8T)(LLM_KV_POOLING_TYPE).c_str());
    so8t_save_generators(so8t, ctx);
}

static void so8t_save_aggregation(const so8t_heads & heads, const so8t_head & head, gguf_context * ctx) {
    auto key = [&](const char * pattern) { return format(pattern, head.name.c_str()); };

    const auto & thresholds = head.prompt_thresholds;
    std::vector<std::string> names;
    for (const auto aggregation : head.prompt_aggregations) {
        names.push_back(so8t_prompt_aggregation_names[aggregation]);
    }
    gguf_set_val_str(ctx, key(SO8T_KV_HEAD_AGGREGATION).c_str(), so8t_aggregation_names[head.aggregation]);
    so8t_set_strings(ctx, key(SO8T_KV_HEAD_PROMPT_AGGREGATION), names);
    gguf_set_arr_data(
        ctx, key(SO8T_KV_HEAD_PROMPT_THRESHOLDS).c_str(), GGUF_TYPE_FLOAT32, thresholds.data(), thresholds.size());
    gguf_set_val_u32(
        ctx, key(SO8T_KV_HEAD_SLIDING_WINDOW).c_str(), head.stem < 0 ? 0 : heads.stems[head.stem].sliding_window);
    if (head.ema_alpha > 0) {
        gguf_set_val_f32(ctx, key(SO8T_KV_HEAD_EMA_ALPHA).c_str(), head.ema_alpha);
    }
    if (head.window > 0) {
        gguf_set_val_u32(ctx, key(SO8T_KV_HEAD_WINDOW).c_str(), head.window);
    }
    if (head.depends_on >= 0) {
        gguf_set_val_str(ctx, key(SO8T_KV_HEAD_DEPENDS_ON).c_str(), heads.heads[head.depends_on].name.c_str());
    }
}

static void so8t_save_heads(const so8t_heads & heads, gguf_context * ctx) {
    std::vector<std::string> names;
    for (const auto & head : heads.heads) {
        if (head.beside) {
            continue;
        }
        auto key = [&](const char * pattern) { return format(pattern, head.name.c_str()); };

        std::vector<std::string> labels;
        std::vector<std::string> actions;
        std::vector<float> thresholds;
        for (const auto & label : head.labels) {
            labels.push_back(label.name);
            actions.push_back(so8t_action_names[label.action]);
            thresholds.push_back(label.threshold);
        }
        so8t_set_strings(ctx, key(SO8T_KV_HEAD_LABELS), labels);
        so8t_set_strings(ctx, key(SO8T_KV_HEAD_ACTIONS), actions);
        gguf_set_arr_data(
            ctx, key(SO8T_KV_HEAD_THRESHOLDS).c_str(), GGUF_TYPE_FLOAT32, thresholds.data(), thresholds.size());
        gguf_set_val_f32(ctx, key(SO8T_KV_HEAD_TEMPERATURE).c_str(), head.temperature);
        gguf_set_val_u32(ctx, key(SO8T_KV_HEAD_DEBOUNCE).c_str(), head.debounce);
        gguf_set_val_i32(ctx, key(SO8T_KV_HEAD_REPRESENTATION).c_str(), head.representation);
        gguf_set_val_str(ctx, key(SO8T_KV_HEAD_ACTIVATION).c_str(),
            head.stem < 0 ? SO8T_ACTIVATION_WITHOUT_STEM : heads.stems[head.stem].form->activation);
        gguf_set_val_str(ctx, key(SO8T_KV_HEAD_SCOPE).c_str(), so8t_scope_names[head.scope - 1]);
        gguf_set_val_str(ctx, key(SO8T_KV_HEAD_RULE).c_str(), so8t_rule_names[head.rule]);
        const auto & source = heads.sources[head.source];
        gguf_set_arr_data(ctx, key(SO8T_KV_HEAD_TAPS).c_str(), GGUF_TYPE_INT32, source.taps.data(), source.taps.size());
        gguf_set_val_str(ctx, key(SO8T_KV_HEAD_TAP_NORM).c_str(), so8t_tap_norm_names[source.norm]);
        gguf_set_val_str(ctx, key(SO8T_KV_HEAD_FORM).c_str(), so8t_form_names[heads.form_of(head)]);
        gguf_set_val_str(ctx, key(SO8T_KV_HEAD_LINK).c_str(), so8t_link_names[head.link]);
        so8t_save_aggregation(heads, head, ctx);
        if (!head.provenance.empty()) {
            gguf_set_val_str(ctx, key(SO8T_KV_HEAD_PROVENANCE).c_str(), head.provenance.c_str());
        }
        if (head.prompt_token != LLAMA_TOKEN_NULL) {
            gguf_set_val_i32(ctx, key(SO8T_KV_HEAD_PROMPT_TOKEN).c_str(), head.prompt_token);
        }
        if (head.stem >= 0) {
            gguf_set_val_str(ctx, key(SO8T_KV_HEAD_STEM).c_str(), heads.stems[head.stem].name.c_str());
        }
        names.push_back(head.name);
    }
    if (!names.empty()) {
        gguf_set_val_u32(ctx, SO8T_KV_FORMAT_VERSION, SO8T_FORMAT_VERSION);
        so8t_set_strings(ctx, SO8T_KV_HEADS, names);
    }
}

void so8t_save(const llama_model & model, gguf_context * ctx) {
    for (const auto & [name, tensor] : model.tensors_by_name) {
        if (name.find("so8t_") != std::string::npos) {
            gguf_add_tensor(ctx, tensor);
        }
    }
    if (model.arch == LLM_ARCH_SO8T) {
        gguf_set_val_u32(ctx, SO8T_KV_FORMAT_VERSION, SO8T_FORMAT_VERSION);
        so8t_save_arch(static_cast<const llama_model_so8t &>(model), ctx);
    }
    if (model.so8t_heads) {
        so8t_save_heads(*model.so8t_heads, ctx);
    }
}
