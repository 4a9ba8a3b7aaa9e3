#pragma once

#include "llama-so8t-taps.h"
#include "so8t.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct gguf_context;
struct llama_model;
struct llama_model_base;
struct llama_model_loader;
struct llama_ubatch;
struct llm_graph_context;

struct so8t_stem;

// What a stem is built from: z, what it reads, at the places where it is needed. Stems that look back also need the z of
// all tokens, and the cells of the memory.
struct so8t_stem_place {
    ggml_tensor * z;     // [n_taps * n_embd, n]
    ggml_tensor * z_all; // [n_taps * n_embd, n_tokens]; null: not needed
    size_t i_stem;       // index into so8t_heads::stems
    bool all_tokens;     // z is z_all, and not that of the outputs
};

// a form of stem; build: [inner, n]
struct so8t_stem_form {
    const char * activation;
    llama_so8t_form form;
    bool has_norm;
    ggml_tensor * (*build)(llm_graph_context & llm, const so8t_stem & stem, const so8t_stem_place & at);
};

// what stands before the heads that name it: act(W1 z + b1), rmsnorm(W1 z), or one layer of attention
struct so8t_stem {
    std::string name;
    const so8t_stem_form * form = nullptr;
    int32_t source              = 0; // index into so8t_heads::sources
    uint32_t sliding_window     = 0; // of attention: tokens that a token sees, 0: all before it

    ggml_tensor * weight = nullptr; // [n_taps * n_embd, inner]
    ggml_tensor * bias   = nullptr; // [inner], optional
    ggml_tensor * norm   = nullptr; // [inner], where the form has one

    // of attention: one key and value head of head_dim for all query heads; inner = n_head * head_dim
    ggml_tensor * attn_q      = nullptr; // [n_taps * n_embd, inner]
    ggml_tensor * attn_k      = nullptr; // [n_taps * n_embd, head_dim]
    ggml_tensor * attn_v      = nullptr; // [n_taps * n_embd, head_dim]
    ggml_tensor * attn_output = nullptr; // [inner, inner]

    int64_t n_inner() const { return (weight ? weight : attn_q)->ne[1]; }

    // all of them, null where the form has none
    std::vector<ggml_tensor *> tensors() const { return {weight, bias, norm, attn_q, attn_k, attn_v, attn_output}; }
};

struct so8t_label {
    std::string name;
    float threshold;
    llama_so8t_action action;
};

struct so8t_head {
    std::string name;
    std::vector<so8t_label> labels;

    float temperature      = 1.0f;
    uint32_t debounce      = 1;
    int32_t representation = 0; // provenance: the rotation is folded into the weights
    llama_so8t_scope scope = LLAMA_SO8T_SCOPE_BOTH;
    llama_so8t_rule rule   = LLAMA_SO8T_RULE_THRESHOLD;
    llama_so8t_link link   = LLAMA_SO8T_LINK_SOFTMAX;

    llama_so8t_aggregation aggregation                             = LLAMA_SO8T_AGGREGATION_RUN;
    float ema_alpha                                                = 0; // of ema
    uint32_t window                                                = 0; // of the aggregation window
    std::vector<llama_so8t_prompt_aggregation> prompt_aggregations = {LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN};
    std::vector<float> prompt_thresholds; // of each of them and each label
    int32_t depends_on = -1;              // an earlier head

    llama_token prompt_token = LLAMA_TOKEN_NULL;
    int32_t source           = 0;       // index into so8t_heads::sources
    int32_t stem             = -1;      // index into so8t_heads::stems
    int32_t offset           = 0;       // first row among the values of all heads
    int32_t stored_offset    = 0;       // and among those that are kept of every token, if it aggregates prompts
    ggml_tensor * weight     = nullptr; // [n_taps * n_embd or inner, n_labels]
    ggml_tensor * bias       = nullptr; // [n_labels], optional
    bool fitted              = true;    // false: the weight is all zeros, found when its data is loaded
    std::string provenance;             // how it was fitted, as JSON; empty: not told
    bool beside = false;                // of a heads file, which is not a part of the model when that is saved

    // whether a prompt is read at more than one token
    bool aggregates_prompt() const {
        return prompt_aggregations.size() > 1 || prompt_aggregations[0] != LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN;
    }
};

// all heads of a model, owned by llama_model
struct so8t_heads {
    std::vector<so8t_source> sources; // all different
    std::vector<so8t_stem> stems;
    std::vector<so8t_head> heads;

    int32_t n_values = 0; // labels of all heads together
    int32_t n_stored = 0; // and of those that aggregate prompts

    std::vector<std::shared_ptr<void>> owned; // tensors of heads files

    llama_so8t_form form_of(const so8t_head & head) const;

    // whether a head reads something else than the final norm as it is
    bool read_layers() const;
};

// head values of the outputs of the last batch, owned by llama_context: [n_outputs][n_values]
struct so8t_head_values {
    void reserve(const so8t_heads * heads, uint32_t n_outputs_max);
    void extract(ggml_backend_sched_t sched, ggml_tensor * values, const llama_ubatch & ubatch, int64_t i_output,
        int64_t n_outputs);
    void swap(uint64_t i0, uint64_t i1);

    int32_t n_values = 0;
    std::vector<float> data;
    std::vector<llama_seq_id> seq_ids; // of each output
};

// call sites in llama.cpp

// reads the head keys and creates the head tensors, for every architecture; after load_arch_tensors
void so8t_load_heads(llama_model_base & model, llama_model_loader & ml);
