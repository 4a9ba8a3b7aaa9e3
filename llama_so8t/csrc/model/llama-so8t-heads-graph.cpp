#include "llama-so8t-heads-graph.h"

#include "llama-so8t-heads.h"
#include "llama-so8t-stems.h"

#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

void so8t_watch_layers(const llm_graph_params & params, const llama_model & model) {
    params.res->so8t_taps.reset();
    if (model.so8t_heads && model.so8t_heads->read_layers()) {
        params.res->so8t_taps = std::make_shared<so8t_taps>(model.so8t_heads->sources);
    }
}

// The heads of a graph. What a head needs of all tokens is computed for all of them, and the rows of the outputs are
// picked behind it; the rest is computed for the outputs.
class so8t_head_builder {
  public:
    so8t_head_builder(llm_graph_context & llm, const so8t_heads & heads) :
        llm(llm),
        heads(heads),
        sources(heads.sources.size()),
        stems(heads.stems.size()) {}

    // false in a graph that has no layers to read
    bool read_sources(llm_graph_type gtype);

    // values of every head, [n_values, n_outputs]
    ggml_tensor * build();

  private:
    // the same at the outputs, and at all tokens where that is needed
    struct at_places {
        ggml_tensor * outputs = nullptr;
        ggml_tensor * all     = nullptr;
    };

    ggml_tensor * build_stem(int32_t i_stem, bool all_tokens);
    ggml_tensor * build_head(const so8t_head & head, bool all_tokens);

    ggml_tensor * of_outputs(ggml_tensor * cur) { return llm.res->so8t_taps->rows_of_outputs(llm, cur); }

    static void append(ggml_context * ctx, ggml_tensor *& values, ggml_tensor * cur) {
        values = values ? ggml_concat(ctx, values, cur, 0) : cur;
    }

    llm_graph_context & llm;
    const so8t_heads & heads;
    std::vector<at_places> sources;
    std::vector<at_places> stems;
};

bool so8t_head_builder::read_sources(llm_graph_type gtype) {
    for (size_t i = 0; i < sources.size(); ++i) {
        if (!llm.res->so8t_taps) {
            sources[i].outputs = llm.res->t_embd; // of the final norm
            continue;
        }
        const auto [read, missing] = llm.res->so8t_taps->read(llm, heads.sources[i]);
        if (!read && gtype == LLM_GRAPH_TYPE_DECODER_MTP) {
            return false; // drafts tokens by a layer of its own, and nobody asks it for verdicts
        }
        if (!read) {
            const auto head = std::find_if(heads.heads.begin(), heads.heads.end(),
                [&](const so8t_head & candidate) { return candidate.source == (int32_t) i; });
            throw std::runtime_error(
                format("so8t: head '%s' has the tap %d, but the architecture '%s' does not tell the "
                       "residual stream there%s, so the head cannot be used with it",
                    head->name.c_str(), missing, llm_arch_name(llm.arch),
                    heads.sources[i].all_tokens ? " for every token" : ""));
        }
        sources[i].all     = heads.sources[i].all_tokens ? read : nullptr;
        sources[i].outputs = heads.sources[i].all_tokens ? of_outputs(read) : read;
    }
    return true;
}

ggml_tensor * so8t_head_builder::build_stem(int32_t i_stem, bool all_tokens) {
    const auto & stem   = heads.stems[i_stem];
    const auto & source = sources[stem.source];
    auto & built        = stems[i_stem];

    // once: heads on one stem may need it at different places
    const bool needs_all = std::any_of(heads.heads.begin(), heads.heads.end(),
        [&](const so8t_head & head) { return head.stem == i_stem && head.aggregates_prompt(); });
    if (needs_all && !built.all) {
        built.all = stem.form->build(llm, stem, {source.all, source.all, (size_t) i_stem, true});
        llm.cb(built.all, "so8t_stem", -1);
    }
    if (!all_tokens && !built.outputs) {
        built.outputs = needs_all ? of_outputs(built.all) :
                                    stem.form->build(llm, stem, {source.outputs, source.all, (size_t) i_stem, false});
        llm.cb(built.outputs, "so8t_stem", -1);
    }
    return all_tokens ? built.all : built.outputs;
}

ggml_tensor * so8t_head_builder::build_head(const so8t_head & head, bool all_tokens) {
    const auto & source = sources[head.source];
    ggml_tensor * z     = head.stem >= 0 ? build_stem(head.stem, all_tokens) : all_tokens ? source.all : source.outputs;
    ggml_tensor * cur   = ggml_mul_mat(llm.ctx0, head.weight, z); // [n_labels, n]
    if (head.bias) {
        cur = ggml_add(llm.ctx0, cur, head.bias);
    }
    llm.cb(cur, "so8t_head", -1);
    return cur;
}

ggml_tensor * so8t_head_builder::build() {
    ggml_tensor * values = nullptr;
    ggml_tensor * stored = nullptr;
    for (const auto & head : heads.heads) {
        const bool all_tokens = head.aggregates_prompt();
        ggml_tensor * cur     = build_head(head, all_tokens);
        if (all_tokens) {
            append(llm.ctx0, stored, cur);
            cur = of_outputs(cur);
        }
        append(llm.ctx0, values, cur);
    }
    if (stored) {
        so8t_store_values(llm, stored);
    }
    return values;
}

void so8t_build_heads(llm_graph_context & llm, const llm_graph_params & params, const llama_model & model) {
    if (!model.so8t_heads || !llm.res->t_embd) { // [n_embd, n_outputs], after the final norm
        return;
    }
    so8t_head_builder builder(llm, *model.so8t_heads);
    if (!builder.read_sources(params.gtype)) {
        return;
    }
    ggml_tensor * values = builder.build();
    llm.cb(values, "so8t_heads", -1);

    ggml_set_output(values);
    ggml_build_forward_expand(llm.gf, values);
    llm.res->t_so8t_heads = values; // [n_values, n_outputs]
}
