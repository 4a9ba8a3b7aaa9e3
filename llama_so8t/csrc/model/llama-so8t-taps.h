#pragma once

#include "so8t.h"

#include <cstdint>
#include <map>
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
// of the names of an input before the first layer. Rows of outputs are picked and normed where a tensor is named, so
// that both run on the device of its layer, and no tensor of all tokens is kept.
class so8t_taps {
  public:
    explicit so8t_taps(const std::vector<so8t_source> & sources);

    // a tensor of the graph that is being built, with its name
    void observe(const llm_graph_context & llm, ggml_tensor * cur, const char * name, int il);

    // what a source reads, [n_taps * n_embd, n_outputs]; null and the missing tap where the graph has not named one
    std::pair<ggml_tensor *, int32_t> read(const llm_graph_context & llm, const so8t_source & source);

  private:
    using key = std::pair<int32_t, llama_so8t_tap_norm>; // tap and what is done to it

    void take(const llm_graph_context & llm, int32_t tap, ggml_tensor * cur);
    ggml_tensor * rows_of_outputs(const llm_graph_context & llm, ggml_tensor * cur);

    std::map<key, ggml_tensor *> taken; // of each tap that a head reads; null until its layer is there
    ggml_tensor * input   = nullptr;    // the newest candidate for tap 0
    ggml_tensor * out_ids = nullptr;
};

// call sites in llama.cpp

// in llm_graph_context::cb
void so8t_observe_layer(const llm_graph_context & llm, ggml_tensor * cur, const char * name, int il);
