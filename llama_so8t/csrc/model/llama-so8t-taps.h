#pragma once

#include "so8t.h"

#include <cstdint>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

struct ggml_tensor;
struct llm_graph_context;

// what heads and stems read: taps of the residual stream, one behind the other, each after the norm
struct so8t_source {
    std::vector<int32_t> taps;
    llama_so8t_tap_norm norm = LLAMA_SO8T_TAP_NORM_NONE;
    bool all_tokens          = false; // read at every token of a batch, and not only at its outputs

    // they can share it
    bool operator==(const so8t_source & other) const { return taps == other.taps && norm == other.norm; }
};

// The residual stream of one graph, as far as the heads of its model read it; owned by llm_graph_result.
//
// Graphs name what they compute through one callback. Tap k + 1 is what they name "l_out" in layer k; tap 0 is the last
// of the names of an input before the first layer. Rows are picked and normed where a tensor is named, so that both run
// on the device of its layer, and a tensor of all tokens is kept only where a source needs it.
class so8t_taps {
  public:
    explicit so8t_taps(const std::vector<so8t_source> & sources);

    // a tensor of the graph that is being built, with its name
    void observe(const llm_graph_context & llm, ggml_tensor * cur, const char * name, int il);

    // what a source reads, [n_taps * n_embd, n_outputs], or n_tokens where it reads all of them; null and the missing tap
    // where the graph has not named one, or not with all tokens
    std::pair<ggml_tensor *, int32_t> read(const llm_graph_context & llm, const so8t_source & source);

    // the rows of the outputs of a tensor that may have those of all tokens, [n, n_tokens]
    ggml_tensor * rows_of_outputs(const llm_graph_context & llm, ggml_tensor * cur);

  private:
    struct key { // a tap, and what is done to it
        int32_t tap;
        llama_so8t_tap_norm norm;
        bool all_tokens;

        bool operator<(const key & other) const {
            return std::tie(tap, norm, all_tokens) < std::tie(other.tap, other.norm, other.all_tokens);
        }
    };

    void take(const llm_graph_context & llm, int32_t tap, ggml_tensor * cur);

    std::map<key, ggml_tensor *> taken; // of each tap that a head reads; null until its layer is there
    ggml_tensor * input   = nullptr;    // the newest candidate for tap 0
    ggml_tensor * out_ids = nullptr;
};

// call sites in llama.cpp

// in llm_graph_context::cb
void so8t_observe_layer(const llm_graph_context & llm, ggml_tensor * cur, const char * name, int il);
