#pragma once

#include "llama-so8t-generators.h"
#include "so8t-families.h"
#include "so8t-format.h"

#include "llama-graph.h"
#include "llama-model.h"

// Architecture so8t: a decoder of a base family with 8-dimensional rotations at sites.
// What a file has folded into its weights needs no graph; explicit sites become MUL_MATs with 8x8 matrices.

// rotations and generators of one layer
//   rotations  [8, 8, n]: element [j, i, b] = R_b[i][j], n by so8t_rotation_row::per; null where the site is folded or
//              absent
//   generators [28, n]: kept for the check at load and for saving
struct so8t_layer {
    ggml_tensor * rotations[SO8T_ROTATION_COUNT] = {};
    so8t_layer_generators generators;
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

    bool is_explicit(so8t_site site) const;

    // representation of each matrix of a rotation; empty: all are vectors
    const std::vector<int32_t> & representations(so8t_per per) const;

    const so8t_family * family = nullptr;

    std::vector<so8t_site> sites_explicit;
    std::vector<so8t_site> sites_folded;

    // representation per head: 0 vector, 1 spinor+, 2 spinor-
    std::vector<int32_t> head_representation;
    std::vector<int32_t> head_kv_representation;

    std::vector<so8t_layer> so8t_layers;
    ggml_tensor * out_gen = nullptr; // [28, n], kept for saving; null where the file has none
};

// Sites that a key of a file names, in its order. Throws std::runtime_error: one is unknown, or named twice.
std::vector<so8t_site> so8t_load_sites(const gguf_context * ctx, const char * key);

// call sites in llama.cpp

// split mode tensor: the axis that the devices share a tensor along, or NONE where llama.cpp's own rules are right.
// Rotations of q, k and v go with their heads. Where heads are mixed in the graph, no device can do without the heads
// of another, so every device has the whole attention; likewise where there is one key-value head.
ggml_backend_meta_split_axis so8t_split_axis(const llama_model & model, const std::string & name);

// split mode tensor: how many matrices of a rotation of q, k or v stay together, 0 for other tensors;
// granularity_head: query heads that stay together, n_gqa: query heads for each key-value head
int64_t so8t_split_granularity(const std::string & name, int64_t granularity_head, int64_t n_gqa);
