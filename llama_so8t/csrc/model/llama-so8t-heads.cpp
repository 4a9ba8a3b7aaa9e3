#include "llama-so8t-heads.h"

#include "so8t-format.h"

#include "llama-context.h"
#include "llama-batch.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

llama_so8t_form so8t_heads::form_of(const so8t_head & head) const {
    return head.stem < 0 ? LLAMA_SO8T_FORM_LINEAR : stems[head.stem].form->form;
}

bool so8t_heads::read_layers() const {
    static const so8t_source final_norm = {{SO8T_TAP_FINAL_NORM}, LLAMA_SO8T_TAP_NORM_NONE};
    return std::any_of(sources.begin(), sources.end(), [](const so8t_source & s) { return !(s == final_norm); });
}

//
// values of the outputs
//

void so8t_head_values::reserve(const so8t_heads * heads, uint32_t n_outputs_max) {
    if (heads && data.empty()) {
        n_values = heads->n_values;
        data.resize((size_t) n_values * n_outputs_max); // once: later copies may still be on their way
        seq_ids.resize(n_outputs_max);
    }
}

void so8t_head_values::extract(ggml_backend_sched_t sched, ggml_tensor * values, const llama_ubatch & ubatch,
    int64_t i_output, int64_t n_outputs) {
    if (n_values == 0 || n_outputs == 0) {
        return;
    }
    auto seq_id = seq_ids.begin() + i_output;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        if (n_outputs == ubatch.n_tokens || ubatch.output[i]) {
            *seq_id++ = ubatch.seq_id[i][0];
        }
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
    if (n_values == 0) {
        return;
    }
    std::swap(seq_ids[i0], seq_ids[i1]);
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

llama_seq_id llama_context::get_so8t_seq_id_ith(int32_t i) {
    output_reorder();
    try {
        return so8t_values.n_values == 0 ? -1 : so8t_values.seq_ids[output_resolve_row(i)];
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: invalid output id %d, reason: %s\n", __func__, i, err.what());
        return -1;
    }
}
