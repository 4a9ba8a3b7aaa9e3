#include "llama-so8t-stems.h"

#include "llama-so8t-token-memory.h"
#include "so8t-format.h"

#include "llama-graph.h"
#include "llama-impl.h"

#include <cmath>
#include <stdexcept>

//
// the cells of the memory, as inputs of a graph
//

// which cells the tokens of a batch have, and which cells they see
class so8t_token_input : public llm_graph_input_i {
  public:
    struct attention {
        ggml_tensor * v_cells; // I64 [head_dim * n_tokens], where the numbers of the values go
        ggml_tensor * mask;    // F32 [n_kv, n], 0 or -infinity
        uint32_t sliding_window;
        bool all_tokens; // the mask has a row for each token, and not only for the outputs
    };

    explicit so8t_token_input(const llm_graph_context & llm) :
        context(llm.res->so8t_tokens),
        n_kv(context->n_kv),
        cells(input(llm, GGML_TYPE_I64, llm.n_tokens, 1)) {}

    // an input of the graph
    static ggml_tensor * input(const llm_graph_context & llm, ggml_type type, int64_t ne0, int64_t ne1) {
        ggml_tensor * tensor = ggml_new_tensor_2d(llm.ctx0, type, ne0, ne1);
        ggml_set_input(tensor);
        return tensor;
    }

    void set_input(const llama_ubatch * ubatch) override;

    bool can_reuse(const llm_graph_params & params) override {
        context = params.res->so8t_tokens;
        return context && context->n_kv == n_kv;
    }

    const so8t_token_memory_context * context;
    const uint32_t n_kv;
    ggml_tensor * cells; // I64 [n_tokens]
    std::vector<attention> attentions;

  private:
    void set_mask(const attention & to, const llama_ubatch & ubatch) const;
};

void so8t_token_input::set_mask(const attention & to, const llama_ubatch & ubatch) const {
    std::vector<float> mask((size_t) (to.mask->ne[0] * to.mask->ne[1]), -INFINITY);
    float * row = mask.data();
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        // where all tokens are outputs, the batch does not say so of each
        if (!to.all_tokens && to.mask->ne[1] != ubatch.n_tokens && !ubatch.output[i]) {
            continue;
        }
        for (uint32_t cell = 0; cell < n_kv; ++cell) {
            if (context->memory.sees(cell, ubatch.seq_id[i][0], ubatch.pos[i], to.sliding_window)) {
                row[cell] = 0;
            }
        }
        row += n_kv;
    }
    ggml_backend_tensor_set(to.mask, mask.data(), 0, mask.size() * sizeof(float));
}

void so8t_token_input::set_input(const llama_ubatch * ubatch) {
    const std::vector<int64_t> at(context->cells.begin(), context->cells.end());
    if (cells->buffer) {
        ggml_backend_tensor_set(cells, at.data(), 0, at.size() * sizeof(int64_t));
    }
    for (const auto & attention : attentions) {
        const int64_t head_dim = attention.v_cells->ne[0] / (int64_t) at.size();
        std::vector<int64_t> to;
        for (const int64_t cell : at) {
            for (int64_t i = 0; i < head_dim; ++i) {
                to.push_back(i * context->memory.n_cells() + cell);
            }
        }
        ggml_backend_tensor_set(attention.v_cells, to.data(), 0, to.size() * sizeof(int64_t));
        if (attention.mask) {
            set_mask(attention, *ubatch);
        }
    }
}

// the one of a graph
static so8t_token_input & so8t_get_token_input(llm_graph_context & llm) {
    if (!llm.res->so8t_tokens) {
        throw std::runtime_error(
            "so8t: a head reads every token before the one that it judges, and the context has none");
    }
    for (const auto & input : llm.res->inputs) {
        if (auto * found = dynamic_cast<so8t_token_input *>(input.get())) {
            return *found;
        }
    }
    return *static_cast<so8t_token_input *>(llm.res->add_input(std::make_unique<so8t_token_input>(llm)));
}

void so8t_store_values(llm_graph_context & llm, ggml_tensor * values) {
    const auto & input = so8t_get_token_input(llm);
    ggml_build_forward_expand(llm.gf, ggml_set_rows(llm.ctx0, input.context->memory.values, values, input.cells));
}

//
// forms of a stem: one function so8t_build_NAME for each row of SO8T_STEM_FORMS
//

// W1 z + b1
static ggml_tensor * so8t_build_linear(llm_graph_context & llm, const so8t_stem & stem, ggml_tensor * z) {
    ggml_tensor * cur = ggml_mul_mat(llm.ctx0, stem.weight, z);
    return stem.bias ? ggml_add(llm.ctx0, cur, stem.bias) : cur;
}

static ggml_tensor * so8t_build_gelu(llm_graph_context & llm, const so8t_stem & stem, const so8t_stem_place & at) {
    return ggml_gelu_erf(llm.ctx0, so8t_build_linear(llm, stem, at.z));
}

static ggml_tensor * so8t_build_tanh(llm_graph_context & llm, const so8t_stem & stem, const so8t_stem_place & at) {
    return ggml_tanh(llm.ctx0, so8t_build_linear(llm, stem, at.z));
}

static ggml_tensor * so8t_build_rmsnorm(llm_graph_context & llm, const so8t_stem & stem, const so8t_stem_place & at) {
    ggml_tensor * cur = so8t_build_linear(llm, stem, at.z);
    return ggml_mul(llm.ctx0, ggml_rms_norm(llm.ctx0, cur, llm.hparams.f_norm_rms_eps), stem.norm);
}

static const float SO8T_MAX_CELL = 1e15f; // far from what heads have, and products with it are finite

// softmax(q k / sqrt(head_dim)) v over the tokens before, with one head of keys and values; [inner, n]
static ggml_tensor * so8t_attend(llm_graph_context & llm, const so8t_token_memory::attention_cells & cells,
    const so8t_token_input & input, ggml_tensor * q) {
    ggml_context * ctx     = llm.ctx0;
    const int64_t head_dim = cells.k->ne[0];
    const int64_t n_head   = q->ne[0] / head_dim;
    ggml_tensor * mask     = input.attentions.back().mask;

    ggml_tensor * k = ggml_view_2d(ctx, cells.k, head_dim, input.n_kv, cells.k->nb[1], 0);
    ggml_tensor * v = ggml_view_2d(ctx, cells.v, input.n_kv, head_dim, cells.v->nb[1], 0);

    q                = ggml_permute(ctx, ggml_reshape_3d(ctx, q, head_dim, n_head, q->ne[1]), 0, 2, 1, 3);
    ggml_tensor * kq = ggml_mul_mat(ctx, k, q); // [n_kv, n, n_head]
    ggml_prec_set_acc(kq, GGML_PREC_F32);
    kq = ggml_soft_max_ext(ctx, kq, mask, 1.0f / std::sqrt((float) head_dim), 0.0f);

    ggml_tensor * cur = ggml_permute(ctx, ggml_mul_mat(ctx, v, kq), 0, 2, 1, 3); // [head_dim, n_head, n]
    return ggml_cont_2d(ctx, cur, head_dim * n_head, cur->ne[2]);
}

static ggml_tensor * so8t_build_attention(llm_graph_context & llm, const so8t_stem & stem, const so8t_stem_place & at) {
    ggml_context * ctx = llm.ctx0;
    auto & input       = so8t_get_token_input(llm);
    const auto & cells = input.context->memory.attention(at.i_stem);
    // Cells are read beside those of other sequences, so a value that is not finite must not become theirs.
    ggml_tensor * k = ggml_clamp(ctx, ggml_mul_mat(ctx, stem.attn_k, at.z_all), -SO8T_MAX_CELL, SO8T_MAX_CELL);
    ggml_tensor * v = ggml_clamp(ctx, ggml_mul_mat(ctx, stem.attn_v, at.z_all), -SO8T_MAX_CELL, SO8T_MAX_CELL);
    ggml_tensor * q = ggml_mul_mat(ctx, stem.attn_q, at.z); // [inner, n]

    input.attentions.push_back({so8t_token_input::input(llm, GGML_TYPE_I64, ggml_nelements(v), 1),
        so8t_token_input::input(llm, GGML_TYPE_F32, input.n_kv, at.z->ne[1]), stem.sliding_window, at.all_tokens});

    // before the cells are read
    ggml_build_forward_expand(llm.gf, ggml_set_rows(ctx, cells.k, k, input.cells));
    ggml_build_forward_expand(
        llm.gf, ggml_set_rows(ctx, ggml_reshape_2d(ctx, cells.v, 1, ggml_nelements(cells.v)),
                    ggml_reshape_2d(ctx, v, 1, ggml_nelements(v)), input.attentions.back().v_cells));

    ggml_tensor * cur = ggml_mul_mat(ctx, stem.attn_output, so8t_attend(llm, cells, input, q));
    return ggml_mul(ctx, ggml_rms_norm(ctx, ggml_add(ctx, cur, q), SO8T_TAP_NORM_EPS), stem.norm);
}

#define SO8T_STEM_FORM(NAME, FORM, HAS_NORM) {#NAME, LLAMA_SO8T_FORM_##FORM, HAS_NORM, so8t_build_##NAME},
const std::vector<so8t_stem_form> & so8t_stem_forms() {
    static const std::vector<so8t_stem_form> forms = {SO8T_STEM_FORMS(SO8T_STEM_FORM)};
    return forms;
}
#undef SO8T_STEM_FORM
