#pragma once

#include "llama-so8t-heads.h"
#include "so8t-kv.h"

#include "llama-graph.h"
#include "llama-model.h"

// Architecture so8t: a qwen3, qwen2 or llama decoder with 8-dimensional rotations at sites.
// What a file has folded into its weights needs no graph; explicit sites become MUL_MATs with 8x8 matrices.

// rotations and generators of one layer; null where the site is folded or absent
//   rotations  [8, 8, n]: element [j, i, b] = R_b[i][j], n = 1 or n_embd/8 (gate, ffn), n_head (q),
//                         n_head_kv (k, v), n_head/8 (heads)
//   generators [28, n]: kept for the check at load and for saving
struct so8t_layer {
    ggml_tensor * gate_safe = nullptr;
    ggml_tensor * gate_cmd  = nullptr;
    ggml_tensor * q         = nullptr;
    ggml_tensor * k         = nullptr;
    ggml_tensor * v         = nullptr;
    ggml_tensor * heads     = nullptr;
    ggml_tensor * ffn       = nullptr;

    ggml_tensor * gate_safe_gen = nullptr;
    ggml_tensor * gate_cmd_gen  = nullptr;
    ggml_tensor * qk_gen        = nullptr;
    ggml_tensor * v_gen         = nullptr;
    ggml_tensor * heads_gen     = nullptr;
    ggml_tensor * ffn_gen       = nullptr;
};

struct llama_model_so8t : public llama_model_base {
    llama_model_so8t(const struct llama_model_params & params) :
        llama_model_base(params) {}
    void load_arch_hparams(llama_model_loader & ml) override;
    void load_arch_tensors(llama_model_loader & ml) override;

    struct graph : public llm_graph_context {
        graph(const llama_model_so8t & model, const llm_graph_params & params);
    };

    std::unique_ptr<llm_graph_context> build_arch_graph(const llm_graph_params & params) const override;

    bool is_explicit(const char * site) const;

    std::string base_architecture;

    std::vector<std::string> sites_explicit;
    std::vector<std::string> sites_folded;

    // representation per head: 0 vector, 1 spinor+, 2 spinor-
    std::vector<int32_t> head_representation;
    std::vector<int32_t> head_kv_representation;

    std::vector<so8t_layer> so8t_layers;
    ggml_tensor * out_gen = nullptr;
    std::vector<const ggml_tensor *> generators; // all of them, for saving
};

// call sites in llama.cpp

// After all data is loaded: throws where a rotation is not in SO(8), or is not exp of its stored generator. Generators
// are not among model.tensors_by_name from here on.
void so8t_finish_load(llama_model & model);

// split mode tensor: the axis that the devices share a tensor along, or NONE where llama.cpp's own rules are right.
// Rotations of q, k and v go with their heads. Where heads are mixed in the graph, no device can do without the heads
// of another, so every device has the whole attention; likewise where there is one key-value head.
ggml_backend_meta_split_axis so8t_split_axis(const llama_model & model, const std::string & name);

// part of so8t_save
void so8t_save_rotations(const llama_model & model, gguf_context * ctx);
