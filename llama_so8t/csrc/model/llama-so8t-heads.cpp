#include "llama-so8t-heads.h"

#include "so8t-format.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

//
// forms of a stem: one function so8t_activate_NAME for each row of SO8T_STEM_FORMS
//

static ggml_tensor * so8t_activate_gelu(llm_graph_context & llm, const so8t_stem & /*stem*/, ggml_tensor * cur) {
    return ggml_gelu_erf(llm.ctx0, cur);
}

static ggml_tensor * so8t_activate_tanh(llm_graph_context & llm, const so8t_stem & /*stem*/, ggml_tensor * cur) {
    return ggml_tanh(llm.ctx0, cur);
}

static ggml_tensor * so8t_activate_rmsnorm(llm_graph_context & llm, const so8t_stem & stem, ggml_tensor * cur) {
    return ggml_mul(llm.ctx0, ggml_rms_norm(llm.ctx0, cur, llm.hparams.f_norm_rms_eps), stem.norm);
}

static ggml_tensor * so8t_activate_attention(llm_graph_context & llm, const so8t_stem & stem, ggml_tensor * cur) {
    GGML_UNUSED(llm);
    GGML_UNUSED(cur);
    throw std::runtime_error(
        format("so8t: stem '%s' has the form attention, which cannot be run yet", stem.name.c_str()));
}

#define SO8T_STEM_FORM(NAME, FORM, HAS_NORM) {#NAME, LLAMA_SO8T_FORM_##FORM, HAS_NORM, so8t_activate_##NAME},
const std::vector<so8t_stem_form> & so8t_stem_forms() {
    static const std::vector<so8t_stem_form> forms = {SO8T_STEM_FORMS(SO8T_STEM_FORM)};
    return forms;
}
#undef SO8T_STEM_FORM

bool so8t_heads::read_layers() const {
    static const so8t_source final_norm = {{SO8T_TAP_FINAL_NORM}, LLAMA_SO8T_TAP_NORM_NONE};
    return std::any_of(sources.begin(), sources.end(), [](const so8t_source & s) { return !(s == final_norm); });
}

//
// graph
//

void so8t_watch_layers(const llm_graph_params & params, const llama_model & model) {
    params.res->so8t_taps.reset();
    if (model.so8t_heads && model.so8t_heads->read_layers()) {
        params.res->so8t_taps = std::make_shared<so8t_taps>(model.so8t_heads->sources);
    }
}

// what each source of the heads reads, [n_taps * n_embd, n_outputs]; empty in a graph that has no layers to read
static std::vector<ggml_tensor *> so8t_read_sources(
    llm_graph_context & llm, const llm_graph_params & params, const so8t_heads & heads) {
    std::vector<ggml_tensor *> result;
    for (size_t i = 0; i < heads.sources.size(); ++i) {
        if (!llm.res->so8t_taps) {
            result.push_back(llm.res->t_embd); // of the final norm
            continue;
        }
        const auto [read, missing] = llm.res->so8t_taps->read(llm, heads.sources[i]);
        if (!read && params.gtype == LLM_GRAPH_TYPE_DECODER_MTP) {
            return {}; // drafts tokens by a layer of its own, and nobody asks it for verdicts
        }
        if (!read) {
            const auto head = std::find_if(heads.heads.begin(), heads.heads.end(),
                [&](const so8t_head & candidate) { return candidate.source == (int32_t) i; });
            throw std::runtime_error(
                format("so8t: head '%s' has the tap %d, but the architecture '%s' does not tell the "
                       "residual stream there, so the head cannot be used with it",
                    head->name.c_str(), missing, llm_arch_name(llm.arch)));
        }
        result.push_back(read);
    }
    return result;
}

static ggml_tensor * so8t_build_stem(llm_graph_context & llm, const so8t_stem & stem, ggml_tensor * z) {
    ggml_tensor * cur = ggml_mul_mat(llm.ctx0, stem.weight, z); // [inner, n_outputs]
    if (stem.bias) {
        cur = ggml_add(llm.ctx0, cur, stem.bias);
    }
    return stem.form->activate(llm, stem, cur);
}

void so8t_build_heads(llm_graph_context & llm, const llm_graph_params & params, const llama_model & model) {
    if (!model.so8t_heads || !llm.res->t_embd) { // [n_embd, n_outputs], after the final norm
        return;
    }
    const auto & heads = *model.so8t_heads;
    ggml_context * ctx = llm.ctx0;

    const auto sources = so8t_read_sources(llm, params, heads);
    if (sources.empty()) {
        return;
    }
    std::vector<ggml_tensor *> stems(heads.stems.size(), nullptr);

    ggml_tensor * values = nullptr;
    for (const auto & head : heads.heads) {
        ggml_tensor * cur = sources[head.source];
        if (head.stem >= 0) {
            auto & stem = stems[head.stem];
            if (!stem) {
                stem = so8t_build_stem(llm, heads.stems[head.stem], cur);
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
