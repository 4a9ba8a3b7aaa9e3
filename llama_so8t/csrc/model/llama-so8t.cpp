#include "llama-so8t.h"

#include "so8t-algebra.h"
#include "so8t-kv.h"

#include "llama-impl.h"
#include "llama-model-loader.h"

#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>

static bool so8t_is_per_head(so8t_per per) {
    return per == SO8T_PER_HEAD || per == SO8T_PER_HEAD_KV;
}

//
// hyper-parameters
//

std::vector<so8t_site> so8t_load_sites(const gguf_context * ctx, const char * key) {
    const so8t_names sites(std::begin(so8t_site_names), std::end(so8t_site_names));

    std::vector<so8t_site> result;
    for (const auto & name : so8t_kv_strings(ctx, key, false)) {
        const int site = so8t_index_of(sites, name);
        if (site < 0) {
            throw std::runtime_error(format("so8t: key '%s' names the site '%s', expected %s", key,
                so8t_shown(name).c_str(), so8t_one_of(sites).c_str()));
        }
        if (std::find(result.begin(), result.end(), site) != result.end()) {
            throw std::runtime_error(format("so8t: key '%s' names the site '%s' twice", key, name.c_str()));
        }
        result.push_back((so8t_site) site);
    }
    return result;
}

// rotations belong to the heads of every layer alike
static void so8t_check_head_counts(const llama_hparams & hparams) {
    const uint32_t n_head    = hparams.n_head();
    const uint32_t n_head_kv = hparams.n_head_kv();
    if (n_head == 0 || n_head_kv == 0 || n_head % n_head_kv != 0) {
        throw std::runtime_error(
            format("so8t: keys 'so8t.attention.head_count' and 'so8t.attention.head_count_kv' are %u and %u, expected "
                   "numbers above 0, the first a multiple of the second",
                n_head, n_head_kv));
    }
    for (uint32_t il = 1; il < hparams.n_layer(); ++il) {
        if (hparams.n_head(il) != n_head || hparams.n_head_kv(il) != n_head_kv) {
            throw std::runtime_error(format(
                "so8t: layer %u has %u heads and %u key-value heads, layer 0 has %u and %u: expected the same in "
                "every layer (keys 'so8t.attention.head_count' and 'so8t.attention.head_count_kv')",
                il, hparams.n_head(il), hparams.n_head_kv(il), n_head, n_head_kv));
        }
    }
}

static std::vector<int32_t> so8t_load_representations(const gguf_context * ctx, const char * key, size_t n) {
    auto result = so8t_kv_ints(ctx, key, false);
    if (result.empty()) {
        for (size_t i = 0; i < n; ++i) {
            result.push_back(i % 3);
        }
    }
    if (result.size() != n || std::any_of(result.begin(), result.end(), [](int32_t t) { return t < 0 || t > 2; })) {
        throw std::runtime_error(
            format("so8t: key '%s' has %zu entries, expected %zu entries of 0, 1 or 2", key, result.size(), n));
    }
    return result;
}

void llama_model_so8t::load_arch_hparams(llama_model_loader & ml) {
    ml.get_key(LLM_KV_ATTENTION_LAYERNORM_RMS_EPS, hparams.f_norm_rms_eps);

    so8t_kv_version(ml.metadata);
    const uint32_t dimension = so8t_kv_uint(ml.metadata, SO8T_KV_ROTATION_DIMENSION, SO8T_DIM);
    if (dimension != SO8T_DIM) {
        throw std::runtime_error(
            format("so8t: key '" SO8T_KV_ROTATION_DIMENSION "' is %u, expected %d", dimension, SO8T_DIM));
    }
    const std::string base = so8t_kv_string(ml.metadata, SO8T_KV_BASE_ARCHITECTURE, so8t_families().front().name);
    family                 = so8t_find_family(base);
    if (!family) {
        so8t_names names;
        for (const auto & known : so8t_families()) {
            names.push_back(known.name);
        }
        throw std::runtime_error(format("so8t: key '" SO8T_KV_BASE_ARCHITECTURE "' is '%s', expected %s",
            so8t_shown(base).c_str(), so8t_one_of(names).c_str()));
    }
    const std::string pooling = ml.llm_kv(LLM_KV_POOLING_TYPE);
    if (gguf_find_key(ml.metadata, pooling.c_str()) >= 0) {
        throw std::runtime_error(
            format("so8t: key '%s' is there, which is the mark of an embedding model; expected a file without it",
                pooling.c_str()));
    }
    so8t_check_head_counts(hparams);
    const uint32_t n_embd_head = hparams.n_embd_head_k();
    if (hparams.n_embd % SO8T_DIM != 0 || n_embd_head % SO8T_DIM != 0 || hparams.n_embd_head_v() != n_embd_head ||
        hparams.n_rot() != n_embd_head) {
        throw std::runtime_error(format("so8t: embedding length %u, key length %u, value length %u, rope dimensions "
                                        "%u: expected multiples of %d, the last three equal",
            hparams.n_embd, n_embd_head, hparams.n_embd_head_v(), hparams.n_rot(), SO8T_DIM));
    }

    sites_explicit = so8t_load_sites(ml.metadata, SO8T_KV_ROTATION_EXPLICIT);
    sites_folded   = so8t_load_sites(ml.metadata, SO8T_KV_ROTATION_FOLDED);
    for (const auto site : sites_folded) {
        if (is_explicit(site)) {
            throw std::runtime_error(format("so8t: the site '%s' is in '" SO8T_KV_ROTATION_EXPLICIT
                                            "' and in '" SO8T_KV_ROTATION_FOLDED "', expected one of them",
                so8t_site_names[site]));
        }
    }
    head_representation    = so8t_load_representations(ml.metadata, SO8T_KV_ATTN_HEAD_REPRESENTATION, hparams.n_head());
    head_kv_representation = so8t_load_representations(
        ml.metadata, SO8T_KV_ATTN_HEAD_KV_REPRESENTATION, hparams.n_head_kv());

    type = so8t_model_type(*family, ml.n_elements);
}

bool llama_model_so8t::is_explicit(so8t_site site) const {
    return std::find(sites_explicit.begin(), sites_explicit.end(), site) != sites_explicit.end();
}

const std::vector<int32_t> & llama_model_so8t::representations(so8t_per per) const {
    static const std::vector<int32_t> vectors;
    return per == SO8T_PER_HEAD ? head_representation : per == SO8T_PER_HEAD_KV ? head_kv_representation : vectors;
}

//
// tensors
//

// rotations [8, 8, n]
static ggml_tensor * so8t_create_rotation(
    llama_model_so8t & model, llama_model_loader & ml, const so8t_rotation_row & row, int il) {
    const std::string suffix = format(SO8T_TENSOR_LAYER_ROT, row.name);
    const LLM_TN_IMPL tn     = LLM_TN(model.arch)(LLM_TENSOR_SO8T_LAYER, suffix.c_str(), il);
    const auto & hparams     = model.hparams;

    int64_t n = 0;
    switch (row.per) {
        case SO8T_PER_HEAD:    n = hparams.n_head(il); break;
        case SO8T_PER_HEAD_KV: n = hparams.n_head_kv(il); break;
        case SO8T_PER_GROUP:   n = hparams.n_head(il) / SO8T_DIM; break;
        case SO8T_PER_BLOCK:   // one for all blocks or one per block, as the file has it
        {
            const ggml_tensor * meta = ml.get_tensor_meta(tn.str().c_str());
            n                        = meta && meta->ne[2] == 1 ? 1 : hparams.n_embd / SO8T_DIM;
            break;
        }
        case SO8T_PER_COUNT: GGML_ABORT("no such rotation");
    }
    ggml_tensor * rotation = model.create_tensor(tn, {SO8T_DIM, SO8T_DIM, n}, 0);
    if (rotation && rotation->type != GGML_TYPE_F32) {
        throw std::runtime_error(
            format("so8t: tensor '%s' is %s, expected f32", tn.str().c_str(), ggml_type_name(rotation->type)));
    }
    return rotation;
}

static void so8t_create_layer(llama_model_so8t & model, llama_model_loader & ml, int il) {
    auto & layer = model.so8t_layers[il];
    for (int r = 0; r < SO8T_ROTATION_COUNT; ++r) {
        const auto & row = so8t_rotation_rows[r];
        if (model.is_explicit(so8t_generator_rows[row.generator].site)) {
            layer.rotations[r] = so8t_create_rotation(model, ml, row, il);
        }
    }
    std::vector<so8t_site> sites = model.sites_explicit;
    sites.insert(sites.end(), model.sites_folded.begin(), model.sites_folded.end());
    so8t_create_generators(layer.generators, model, ml, sites, il);
}

void llama_model_so8t::load_arch_tensors(llama_model_loader & ml) {
    LLAMA_LOAD_LOCALS;

    tok_embd = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, 0);

    // output
    output_norm = create_tensor(tn(LLM_TENSOR_OUTPUT_NORM, "weight"), {n_embd}, 0);
    output      = create_tensor(tn(LLM_TENSOR_OUTPUT, "weight"), {n_embd, n_vocab}, TENSOR_NOT_REQUIRED);
    // if output is NULL, init from the input tok embed
    if (output == NULL) {
        output = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, TENSOR_DUPLICATED);
    }

    out_gen = so8t_create_generator(*this, ml, tn(LLM_TENSOR_SO8T_OUT_GEN, SO8T_TENSOR_OUT_GEN));
    so8t_layers.resize(n_layer);

    for (int i = 0; i < n_layer; ++i) {
        auto & layer = layers[i];

        layer.attn_norm = create_tensor(tn(LLM_TENSOR_ATTN_NORM, "weight", i), {n_embd}, 0);

        create_tensor_qkv(layer, i, n_embd, n_embd_head_k * n_head, n_embd_k_gqa, n_embd_v_gqa, 0);
        layer.wo   = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "weight", i), {n_embd_head_k * n_head, n_embd}, 0);
        layer.wo_b = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "bias", i), {n_embd}, TENSOR_NOT_REQUIRED);

        if (family->qk_norm) {
            layer.attn_k_norm = create_tensor(tn(LLM_TENSOR_ATTN_K_NORM, "weight", i), {n_embd_head_k}, 0);
            layer.attn_q_norm = create_tensor(tn(LLM_TENSOR_ATTN_Q_NORM, "weight", i), {n_embd_head_k}, 0);
        }
        layer.rope_freqs = create_tensor(tn(LLM_TENSOR_ROPE_FREQS, "weight", i), {n_rot / 2},
            TENSOR_NOT_REQUIRED | (i != 0 ? TENSOR_DUPLICATED : 0));

        layer.ffn_norm = create_tensor(tn(LLM_TENSOR_FFN_NORM, "weight", i), {n_embd}, 0);
        layer.ffn_gate = create_tensor(tn(LLM_TENSOR_FFN_GATE, "weight", i), {n_embd, n_ff}, 0);
        layer.ffn_down = create_tensor(tn(LLM_TENSOR_FFN_DOWN, "weight", i), {n_ff, n_embd}, 0);
        layer.ffn_up   = create_tensor(tn(LLM_TENSOR_FFN_UP, "weight", i), {n_embd, n_ff}, 0);

        layer.ffn_gate_b = create_tensor(tn(LLM_TENSOR_FFN_GATE, "bias", i), {n_ff}, TENSOR_NOT_REQUIRED);
        layer.ffn_down_b = create_tensor(tn(LLM_TENSOR_FFN_DOWN, "bias", i), {n_embd}, TENSOR_NOT_REQUIRED);
        layer.ffn_up_b   = create_tensor(tn(LLM_TENSOR_FFN_UP, "bias", i), {n_ff}, TENSOR_NOT_REQUIRED);

        so8t_create_layer(*this, ml, i);
    }
}

//
// split mode tensor
//

static bool so8t_contains(const std::string & name, const std::string & part) {
    return name.find(part) != std::string::npos;
}

// the row of the rotation of q, k or v that a tensor is, or null
static const so8t_rotation_row * so8t_head_rotation(const std::string & name) {
    for (const auto & row : so8t_rotation_rows) {
        if (so8t_is_per_head(row.per) && so8t_contains(name, "." + format(SO8T_TENSOR_LAYER_ROT, row.name))) {
            return &row;
        }
    }
    return nullptr;
}

ggml_backend_meta_split_axis so8t_split_axis(const llama_model & model, const std::string & name) {
    if (model.arch != LLM_ARCH_SO8T) {
        return GGML_BACKEND_SPLIT_AXIS_NONE;
    }
    const bool is_rotation = so8t_head_rotation(name) != nullptr;
    // llama.cpp cannot share a single key-value head out either
    if (static_cast<const llama_model_so8t &>(model).is_explicit(SO8T_SITE_HEADS) || model.hparams.n_head_kv() == 1) {
        return is_rotation || so8t_contains(name, ".attn_") || so8t_contains(name, "cache_") ?
                   GGML_BACKEND_SPLIT_AXIS_MIRRORED :
                   GGML_BACKEND_SPLIT_AXIS_NONE;
    }
    return is_rotation ? GGML_BACKEND_SPLIT_AXIS_2 : GGML_BACKEND_SPLIT_AXIS_NONE;
}

int64_t so8t_split_granularity(const std::string & name, int64_t granularity_head, int64_t n_gqa) {
    const auto * rotation = so8t_head_rotation(name);
    return !rotation ? 0 : rotation->per == SO8T_PER_HEAD ? granularity_head : granularity_head / n_gqa;
}

//
// graph
//

static ggml_tensor * so8t_mul_mat(ggml_context * ctx, ggml_tensor * rot, ggml_tensor * x) {
    ggml_tensor * cur = ggml_mul_mat(ctx, rot, x);
    ggml_mul_mat_set_hint(cur, GGML_HINT_SRC0_IS_SO8);
    return cur;
}

// so8t_rotate: x [n_embd, n_tokens], rot [8, 8, n_embd/8] or [8, 8, 1] -> [n_embd, n_tokens]
//   y[8*b + i, t] = sum_j rot[j, i, b]*x[8*b + j, t]
static ggml_tensor * so8t_rotate(ggml_context * ctx, ggml_tensor * rot, ggml_tensor * x) {
    const int64_t n_embd   = x->ne[0];
    const int64_t n_tokens = x->ne[1];
    const int64_t n_blocks = n_embd / SO8T_DIM;

    ggml_tensor * blocks = rot->ne[2] == 1 ? ggml_reshape_2d(ctx, x, SO8T_DIM, n_blocks * n_tokens) :
                                             ggml_reshape_4d(ctx, x, SO8T_DIM, 1, n_blocks, n_tokens);
    return ggml_reshape_2d(ctx, so8t_mul_mat(ctx, rot, blocks), n_embd, n_tokens);
}

// so8t_rotate_heads: x [n_embd_head, n_head, n_tokens], heads and tokens with any stride, rot [8, 8, n_head] -> the same shape
//   y[8*b + i, h, t] = sum_j rot[j, i, h]*x[8*b + j, h, t]
static ggml_tensor * so8t_rotate_heads(ggml_context * ctx, ggml_tensor * rot, ggml_tensor * x) {
    const int64_t n_embd_head = x->ne[0];
    const int64_t n_head      = x->ne[1];
    const int64_t n_tokens    = x->ne[2];

    ggml_tensor * cur = ggml_view_4d(
        ctx, x, SO8T_DIM, n_embd_head / SO8T_DIM, n_head, n_tokens, SO8T_DIM * x->nb[0], x->nb[1], x->nb[2], 0);
    cur = so8t_mul_mat(ctx, rot, cur);
    return ggml_reshape_3d(ctx, cur, n_embd_head, n_head, n_tokens);
}

// so8t_mix_heads: o [n_embd_head*n_head, n_tokens], rot [8, 8, n_head/8] -> o, mixed in place
//   y[d, 8*g + i, t] = sum_k rot[k, i, g]*o[d, 8*g + k, t]; heads past the last full group are unchanged
static ggml_tensor * so8t_mix_heads(ggml_context * ctx, ggml_tensor * rot, ggml_tensor * o, int64_t n_embd_head) {
    const int64_t n_groups = rot->ne[2];
    const int64_t n_tokens = o->ne[1];
    const size_t nb_head   = n_embd_head * sizeof(float);

    // MUL_MAT sums over the first dimension, so the heads of a group go there and come back. ggml_so8t_cpu_try_fuse
    // knows these nodes and copies nothing; other backends compute them as they stand.
    ggml_tensor * groups = ggml_view_4d(
        ctx, o, n_embd_head, SO8T_DIM, n_groups, n_tokens, nb_head, SO8T_DIM * nb_head, o->nb[1], 0);
    ggml_tensor * cur = ggml_cont(ctx, ggml_permute(ctx, groups, 1, 0, 2, 3)); // [8, n_embd_head, n_groups, n_tokens]
    cur               = so8t_mul_mat(ctx, rot, cur);
    cur               = ggml_cpy(ctx, ggml_permute(ctx, cur, 1, 0, 2, 3), groups);
    return ggml_view_2d(ctx, cur, o->ne[0], n_tokens, o->nb[1], 0);
}

std::unique_ptr<llm_graph_context> llama_model_so8t::build_arch_graph(const llm_graph_params & params) const {
    return std::make_unique<graph>(*this, params);
}

llama_model_so8t::graph::graph(const llama_model_so8t & model, const llm_graph_params & params) :
    llm_graph_context(params) {
    const int64_t n_embd_head = hparams.n_embd_head_v();

    GGML_ASSERT(n_embd_head == hparams.n_embd_head_k());
    GGML_ASSERT(n_embd_head == n_rot);

    ggml_tensor * cur;
    ggml_tensor * inpL;

    inpL = build_inp_embd(model.tok_embd);

    // inp_pos - contains the positions
    ggml_tensor * inp_pos = build_inp_pos();

    auto * inp_attn = build_attn_inp_kv();

    ggml_tensor * inp_out_ids = build_inp_out_ids();

    for (int il = 0; il < n_layer; ++il) {
        const auto & layer = model.layers[il];
        const auto & so8t  = model.so8t_layers[il].rotations;

        res->t_layer_inp[il] = inpL;

        ggml_tensor * inpSA = inpL;

        // norm
        cur = build_norm(inpL, layer.attn_norm, NULL, LLM_NORM_RMS, il);
        cb(cur, "attn_norm", il);

        // site gate: R_safe, then R_cmd
        if (so8t[SO8T_ROTATION_GATE_SAFE]) {
            cur = so8t_rotate(ctx0, so8t[SO8T_ROTATION_GATE_SAFE], cur);
            cb(cur, "so8t_gate_safe", il);
            cur = so8t_rotate(ctx0, so8t[SO8T_ROTATION_GATE_CMD], cur);
            cb(cur, "so8t_gate_cmd", il);
        }

        // self-attention
        {
            auto [Qcur, Kcur, Vcur] = build_qkv(layer, cur, n_embd_head, n_head, n_head_kv, il);

            if (layer.attn_q_norm) {
                Qcur = build_norm(Qcur, layer.attn_q_norm, NULL, LLM_NORM_RMS, il);
                cb(Qcur, "Qcur_normed", il);
                Kcur = build_norm(Kcur, layer.attn_k_norm, NULL, LLM_NORM_RMS, il);
                cb(Kcur, "Kcur_normed", il);
            }

            // sites qk and v: triality, each head in its representation, before RoPE
            if (so8t[SO8T_ROTATION_Q]) {
                Qcur = so8t_rotate_heads(ctx0, so8t[SO8T_ROTATION_Q], Qcur);
                cb(Qcur, "so8t_q", il);
                Kcur = so8t_rotate_heads(ctx0, so8t[SO8T_ROTATION_K], Kcur);
                cb(Kcur, "so8t_k", il);
            }
            if (so8t[SO8T_ROTATION_V]) {
                Vcur = so8t_rotate_heads(ctx0, so8t[SO8T_ROTATION_V], Vcur);
                cb(Vcur, "so8t_v", il);
            }

            ggml_tensor * rope_factors = model.get_rope_factors(cparams, il);

            Qcur = ggml_rope_ext(ctx0, Qcur, inp_pos, rope_factors, n_rot, rope_type, n_ctx_orig, freq_base, freq_scale,
                ext_factor, attn_factor, beta_fast, beta_slow);

            Kcur = ggml_rope_ext(ctx0, Kcur, inp_pos, rope_factors, n_rot, rope_type, n_ctx_orig, freq_base, freq_scale,
                ext_factor, attn_factor, beta_fast, beta_slow);

            cb(Qcur, "Qcur", il);
            cb(Kcur, "Kcur", il);
            cb(Vcur, "Vcur", il);

            const float kq_scale = 1.0f / sqrtf(float(n_embd_head));

            if (so8t[SO8T_ROTATION_HEADS]) {
                // site heads stands between the attention and its output projection
                cur = build_attn(
                    inp_attn, nullptr, nullptr, nullptr, Qcur, Kcur, Vcur, nullptr, nullptr, nullptr, kq_scale, il);
                cur = so8t_mix_heads(ctx0, so8t[SO8T_ROTATION_HEADS], cur, n_embd_head);
                cb(cur, "so8t_heads_mixed", il);
                cur = build_lora_mm(layer.wo, cur, layer.wo_s);
                if (layer.wo_b) {
                    cur = ggml_add(ctx0, cur, layer.wo_b);
                }
                cb(cur, "attn_out", il);
            } else {
                cur = build_attn(inp_attn, layer.wo, layer.wo_b, layer.wo_s, Qcur, Kcur, Vcur, nullptr, nullptr,
                    nullptr, kq_scale, il);
            }
        }
        if (il == n_layer - 1 && inp_out_ids) {
            cur   = ggml_get_rows(ctx0, cur, inp_out_ids);
            inpSA = ggml_get_rows(ctx0, inpSA, inp_out_ids);
        }
        ggml_tensor * ffn_inp = ggml_add(ctx0, cur, inpSA);
        cb(ffn_inp, "ffn_inp", il);

        // feed-forward network
        cur = build_norm(ffn_inp, layer.ffn_norm, NULL, LLM_NORM_RMS, il);
        cb(cur, "ffn_norm", il);

        // site ffn
        if (so8t[SO8T_ROTATION_FFN]) {
            cur = so8t_rotate(ctx0, so8t[SO8T_ROTATION_FFN], cur);
            cb(cur, "so8t_ffn", il);
        }

        cur = build_ffn(cur, layer.ffn_up, layer.ffn_up_b, layer.ffn_up_s, layer.ffn_gate, layer.ffn_gate_b,
            layer.ffn_gate_s, layer.ffn_down, layer.ffn_down_b, layer.ffn_down_s, NULL, LLM_FFN_SILU, LLM_FFN_PAR, il);
        cb(cur, "ffn_out", il);

        cur = ggml_add(ctx0, cur, ffn_inp);

        cur = build_cvec(cur, il);
        cb(cur, "l_out", il);

        // input for next layer
        inpL = cur;
    }
    cur = inpL;

    cur = build_norm(cur, model.output_norm, NULL, LLM_NORM_RMS, -1);

    cb(cur, "result_norm", -1);
    res->t_embd = cur;

    // lm_head
    cur = build_lora_mm(model.output, cur, model.output_s);

    cb(cur, "result_output", -1);
    res->t_logits = cur;

    ggml_build_forward_expand(gf, cur);
}
