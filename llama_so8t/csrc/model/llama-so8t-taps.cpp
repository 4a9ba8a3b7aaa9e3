#include "llama-so8t-taps.h"

#include "so8t-format.h"

#include "llama-graph.h"

#include <algorithm>
#include <cstring>
#include <iterator>

// names of a layer's output: the second is what the vision models of Qwen add to their first layers
static const char * const so8t_output_names[] = {"l_out", "deepstack_out"};

// names of the input of the first layer, in graphs that scale, norm or shift the embedding of a token, and in others
static const char * const so8t_input_names[] = {
    "embd", "inp_embd", "inp_embd_scaled", "inp_scaled", "inp_norm", "embd_norm", "inpL"};

template <size_t N>
static bool so8t_is_one_of(const char * name, const char * const (&names)[N]) {
    return std::any_of(std::begin(names), std::end(names), [&](const char * known) { return !strcmp(name, known); });
}

so8t_taps::so8t_taps(const std::vector<so8t_source> & sources) {
    for (const auto & source : sources) {
        for (const int32_t tap : source.taps) {
            taken[{tap, source.norm, source.all_tokens}] = nullptr;
        }
    }
}

// a layer's output or input for every token, as [n_embd, n_tokens]; also where the batch is cut into sequences
static bool so8t_is_stream(const llm_graph_context & llm, const ggml_tensor * cur) {
    const int64_t n_rows = ggml_nelements(cur) / llm.n_embd;
    return cur->type == GGML_TYPE_F32 && cur->ne[0] == llm.n_embd &&
           (n_rows == llm.n_tokens || n_rows == llm.n_outputs);
}

void so8t_taps::observe(const llm_graph_context & llm, ggml_tensor * cur, const char * name, int il) {
    if (il <= 0 && so8t_is_one_of(name, so8t_input_names)) {
        input = so8t_is_stream(llm, cur) ? cur : nullptr;
        return;
    }
    if (il >= 0 && input) { // the first layer has begun
        take(llm, 0, input);
        input = nullptr;
    }
    if (il >= 0 && il < llm.n_layer && so8t_is_one_of(name, so8t_output_names) && so8t_is_stream(llm, cur)) {
        take(llm, il + 1, cur);
    }
}

// The last layer is mostly reduced to the outputs. Where all tokens are outputs, picking them changes nothing, but it
// keeps the graph the same for any number of outputs, as llama.cpp does.
ggml_tensor * so8t_taps::rows_of_outputs(const llm_graph_context & llm, ggml_tensor * cur) {
    if (cur->ne[1] != llm.n_tokens) {
        return cur;
    }
    for (const auto & input : llm.res->inputs) {
        if (const auto * found = dynamic_cast<const llm_graph_input_out_ids *>(input.get()); found && !out_ids) {
            out_ids = found->out_ids;
        }
    }
    if (!out_ids) {
        out_ids = llm.build_inp_out_ids();
    }
    return ggml_set_name(ggml_get_rows(llm.ctx0, cur, out_ids), "so8t_tap_rows");
}

void so8t_taps::take(const llm_graph_context & llm, int32_t tap, ggml_tensor * cur) {
    for (auto & [wanted, result] : taken) {
        if (wanted.tap != tap) {
            continue;
        }
        if (ggml_n_dims(cur) > 2) {
            cur = ggml_reshape_2d(llm.ctx0, ggml_is_contiguous(cur) ? cur : ggml_cont(llm.ctx0, cur), llm.n_embd,
                ggml_nelements(cur) / llm.n_embd);
        }
        if (wanted.all_tokens && cur->ne[1] != llm.n_tokens) {
            continue;
        }
        const bool is_last   = tap == llm.n_layer || tap == SO8T_TAP_FINAL_NORM;
        const bool are_there = wanted.all_tokens || (is_last && cur->ne[1] == llm.n_outputs);
        ggml_tensor * rows   = are_there ? cur : rows_of_outputs(llm, cur);
        result = wanted.norm == LLAMA_SO8T_TAP_NORM_RMS ? ggml_rms_norm(llm.ctx0, rows, SO8T_TAP_NORM_EPS) : rows;
        if (result != cur) {
            ggml_format_name(result, "so8t_tap-%d", tap);
        }
        ggml_build_forward_expand(llm.gf, result);
    }
}

std::pair<ggml_tensor *, int32_t> so8t_taps::read(const llm_graph_context & llm, const so8t_source & source) {
    ggml_tensor * result = nullptr;
    for (const int32_t tap : source.taps) {
        ggml_tensor *& cur = taken.at({tap, source.norm, source.all_tokens});
        if (!cur && tap == SO8T_TAP_FINAL_NORM) {
            take(llm, tap, llm.res->t_embd);
        }
        if (!cur) {
            return {nullptr, tap};
        }
        result = result ? ggml_set_name(ggml_concat(llm.ctx0, result, cur, 0), "so8t_taps") : cur;
    }
    return {result, 0};
}

//
// call sites in llama.cpp
//

void so8t_observe_layer(const llm_graph_context & llm, ggml_tensor * cur, const char * name, int il) {
    if (llm.res->so8t_taps) {
        llm.res->so8t_taps->observe(llm, cur, name, il);
    }
}
