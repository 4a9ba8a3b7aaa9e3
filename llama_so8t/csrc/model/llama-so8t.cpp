#include "llama-so8t.h"

#include "so8t-algebra.h"
#include "so8t-format.h"

#include "llama-impl.h"
#include "llama-model-loader.h"

#include "gguf.h"

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cmath>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <unordered_set>

//
// hyper-parameters
//

static std::vector<std::string> so8t_load_sites(const gguf_context * ctx, const char * key) {
    static const char * const sites[] = {SO8T_SITE_GATE, SO8T_SITE_QK, SO8T_SITE_V, SO8T_SITE_HEADS, SO8T_SITE_FFN};

    const auto result = so8t_kv_strings(ctx, key, false);
    for (const auto & site : result) {
        if (so8t_index_of(sites, 5, site) < 0) {
            throw std::runtime_error(
                format("so8t: key '%s' names the site '%s', expected gate, qk, v, heads or ffn", key, site.c_str()));
        }
    }
    return result;
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

    const uint32_t version = so8t_kv_uint(ml.metadata, SO8T_KV_FORMAT_VERSION, SO8T_FORMAT_VERSION);
    if (version != SO8T_FORMAT_VERSION) {
        throw std::runtime_error(format("so8t: key '" SO8T_KV_FORMAT_VERSION "' is %u, this program reads version %d",
            version, SO8T_FORMAT_VERSION));
    }
    const uint32_t dimension = so8t_kv_uint(ml.metadata, SO8T_KV_ROTATION_DIMENSION, SO8T_DIM);
    if (dimension != SO8T_DIM) {
        throw std::runtime_error(
            format("so8t: key '" SO8T_KV_ROTATION_DIMENSION "' is %u, expected %d", dimension, SO8T_DIM));
    }
    static const char * const bases[] = {"qwen3", "qwen2", "llama"};
    base_architecture                 = so8t_kv_string(ml.metadata, SO8T_KV_BASE_ARCHITECTURE, bases[0]);
    if (so8t_index_of(bases, 3, base_architecture) < 0) {
        throw std::runtime_error(
            format("so8t: key '" SO8T_KV_BASE_ARCHITECTURE "' is '%s', expected qwen3, qwen2 or llama",
                base_architecture.c_str()));
    }
    const uint32_t n_embd_head = hparams.n_embd_head_k();
    if (hparams.n_embd % SO8T_DIM != 0 || n_embd_head % SO8T_DIM != 0 || hparams.n_embd_head_v() != n_embd_head ||
        hparams.n_rot() != n_embd_head) {
        throw std::runtime_error(format("so8t: embedding length %u, key length %u, value length %u, rope dimensions "
                                        "%u: expected multiples of %d, the last three equal",
            hparams.n_embd, n_embd_head, hparams.n_embd_head_v(), hparams.n_rot(), SO8T_DIM));
    }

    sites_explicit         = so8t_load_sites(ml.metadata, SO8T_KV_ROTATION_EXPLICIT);
    sites_folded           = so8t_load_sites(ml.metadata, SO8T_KV_ROTATION_FOLDED);
    head_representation    = so8t_load_representations(ml.metadata, SO8T_KV_ATTN_HEAD_REPRESENTATION, hparams.n_head());
    head_kv_representation = so8t_load_representations(
        ml.metadata, SO8T_KV_ATTN_HEAD_KV_REPRESENTATION, hparams.n_head_kv());

    switch (hparams.n_layer()) {
        case 28: type = hparams.n_embd == 1024 ? LLM_TYPE_0_6B : LLM_TYPE_1_7B; break;
        case 36: type = hparams.n_embd == 2560 ? LLM_TYPE_4B : LLM_TYPE_8B; break;
        case 40: type = LLM_TYPE_14B; break;
        case 64: type = LLM_TYPE_32B; break;
        default: type = LLM_TYPE_UNKNOWN;
    }
}

bool llama_model_so8t::is_explicit(const char * site) const {
    return std::find(sites_explicit.begin(), sites_explicit.end(), site) != sites_explicit.end();
}

//
// tensors
//

// n rotations [8, 8, n]; n < 0: one for all blocks or one per block, as the file has it
static ggml_tensor * so8t_create_rotation(
    llama_model_so8t & model, llama_model_loader & ml, const char * name, int il, int64_t n) {
    const std::string suffix = format(SO8T_TENSOR_LAYER_ROT, name);
    const LLM_TN_IMPL tn     = LLM_TN(model.arch)(LLM_TENSOR_SO8T_LAYER, suffix.c_str(), il);
    if (n < 0) {
        const ggml_tensor * meta = ml.get_tensor_meta(tn.str().c_str());
        const int64_t n_blocks   = model.hparams.n_embd / SO8T_DIM;
        n                        = meta && meta->ne[2] == 1 ? 1 : n_blocks;
    }
    ggml_tensor * rotation = model.create_tensor(tn, {SO8T_DIM, SO8T_DIM, n}, 0);
    if (rotation && rotation->type != GGML_TYPE_F32) {
        throw std::runtime_error(
            format("so8t: tensor '%s' is %s, expected f32", tn.str().c_str(), ggml_type_name(rotation->type)));
    }
    return rotation;
}

// generators [28, n] as the file has them, null if it has none; n > 0: made so for a model that comes from no file
static ggml_tensor * so8t_create_generator(
    llama_model_so8t & model, llama_model_loader & ml, const LLM_TN_IMPL & tn, int64_t n) {
    const ggml_tensor * meta = ml.get_tensor_meta(tn.str().c_str());
    if (!meta && (n == 0 || !ml.files.empty())) {
        return nullptr;
    }
    if (meta && meta->type != GGML_TYPE_F32) {
        throw std::runtime_error(
            format("so8t: tensor '%s' is %s, expected f32", tn.str().c_str(), ggml_type_name(meta->type)));
    }
    ggml_tensor * generator = model.create_tensor(tn, {SO8T_N_GENERATORS, meta ? meta->ne[1] : n}, 0);
    model.generators.push_back(generator);
    return generator;
}

static ggml_tensor * so8t_create_layer_generator(
    llama_model_so8t & model, llama_model_loader & ml, const char * name, int il, int64_t n) {
    const std::string suffix = format(SO8T_TENSOR_LAYER_GEN, name);
    return so8t_create_generator(model, ml, LLM_TN(model.arch)(LLM_TENSOR_SO8T_LAYER, suffix.c_str(), il), n);
}

static void so8t_create_layer(llama_model_so8t & model, llama_model_loader & ml, int il) {
    const auto & hparams = model.hparams;
    auto & layer         = model.so8t_layers[il];

    if (model.is_explicit(SO8T_SITE_GATE)) {
        layer.gate_safe = so8t_create_rotation(model, ml, "gate_safe", il, -1);
        layer.gate_cmd  = so8t_create_rotation(model, ml, "gate_cmd", il, -1);
    }
    if (model.is_explicit(SO8T_SITE_QK)) {
        layer.q = so8t_create_rotation(model, ml, "q", il, hparams.n_head(il));
        layer.k = so8t_create_rotation(model, ml, "k", il, hparams.n_head_kv(il));
    }
    if (model.is_explicit(SO8T_SITE_V)) {
        layer.v = so8t_create_rotation(model, ml, "v", il, hparams.n_head_kv(il));
    }
    if (model.is_explicit(SO8T_SITE_HEADS)) {
        layer.heads = so8t_create_rotation(model, ml, "heads", il, hparams.n_head(il) / SO8T_DIM);
    }
    if (model.is_explicit(SO8T_SITE_FFN)) {
        layer.ffn = so8t_create_rotation(model, ml, "ffn", il, -1);
    }
    auto n_matrices = [](const ggml_tensor * rotation) { return rotation ? rotation->ne[2] : 0; };

    layer.gate_safe_gen = so8t_create_layer_generator(model, ml, "gate_safe", il, n_matrices(layer.gate_safe));
    layer.gate_cmd_gen  = so8t_create_layer_generator(model, ml, "gate_cmd", il, n_matrices(layer.gate_cmd));
    layer.qk_gen        = so8t_create_layer_generator(model, ml, "qk", il, layer.q ? 1 : 0);
    layer.v_gen         = so8t_create_layer_generator(model, ml, "v", il, layer.v ? 1 : 0);
    layer.heads_gen     = so8t_create_layer_generator(model, ml, "heads", il, n_matrices(layer.heads));
    layer.ffn_gen       = so8t_create_layer_generator(model, ml, "ffn", il, n_matrices(layer.ffn));
}

void llama_model_so8t::load_arch_tensors(llama_model_loader & ml) {
    LLAMA_LOAD_LOCALS;

    const bool has_qk_norm = base_architecture == "qwen3";

    tok_embd = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, 0);

    // output
    output_norm = create_tensor(tn(LLM_TENSOR_OUTPUT_NORM, "weight"), {n_embd}, 0);
    output      = create_tensor(tn(LLM_TENSOR_OUTPUT, "weight"), {n_embd, n_vocab}, TENSOR_NOT_REQUIRED);
    // if output is NULL, init from the input tok embed
    if (output == NULL) {
        output = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, TENSOR_DUPLICATED);
    }

    out_gen = so8t_create_generator(*this, ml, tn(LLM_TENSOR_SO8T_OUT_GEN, SO8T_TENSOR_OUT_GEN), 0);
    so8t_layers.resize(n_layer);

    for (int i = 0; i < n_layer; ++i) {
        auto & layer = layers[i];

        layer.attn_norm = create_tensor(tn(LLM_TENSOR_ATTN_NORM, "weight", i), {n_embd}, 0);

        create_tensor_qkv(layer, i, n_embd, n_embd_head_k * n_head, n_embd_k_gqa, n_embd_v_gqa, 0);
        layer.wo   = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "weight", i), {n_embd_head_k * n_head, n_embd}, 0);
        layer.wo_b = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "bias", i), {n_embd}, TENSOR_NOT_REQUIRED);

        if (has_qk_norm) {
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
// check
//

static constexpr double SO8T_TOLERANCE = 1e-4; // spec: largest error of R^T R, of det and against exp(generator)

// A rotation this close to exp of its generator, which is orthogonal, needs no check of its own. With R = E + D,
// |D| <= d in every entry: |R^T R - I| <= 2 sqrt(8) d + 8 d^2 and |det R - 1| <= exp(8 sqrt(8) d) - 1 < 1e-4.
static constexpr double SO8T_CLOSE = 4e-6;

static constexpr unsigned SO8T_MAX_THREADS = 8;

// rotations of one tensor against their generators
struct so8t_check_job {
    so8t_check_job(
        const ggml_tensor * rotation, const ggml_tensor * generator, const std::vector<int32_t> & representations);
    void run(std::mutex & reading) const;

    const ggml_tensor * rotation;
    const ggml_tensor * generator;
    std::vector<int32_t> representations; // one per matrix, or empty for the vector representation
};

static std::vector<float> so8t_read(const ggml_tensor * tensor) {
    std::vector<float> data(ggml_nelements(tensor));
    ggml_backend_tensor_get(tensor, data.data(), 0, ggml_nbytes(tensor));
    return data;
}

so8t_check_job::so8t_check_job(
    const ggml_tensor * rotation, const ggml_tensor * generator, const std::vector<int32_t> & representations) :
    rotation(rotation),
    generator(generator),
    representations(representations) {
    const int64_t n     = rotation->ne[2];
    const int64_t n_gen = generator ? generator->ne[1] : 0;
    if (n_gen == 0 || (n_gen != 1 && n_gen != n) || (!representations.empty() && n_gen != 1)) {
        throw std::runtime_error(format("so8t: tensor '%s' has %" PRId64 " rotations and %" PRId64
                                        " generators, expected its generators in the file",
            rotation->name, n, n_gen));
    }
}

void so8t_check_job::run(std::mutex & reading) const {
    std::vector<float> matrices;
    std::vector<float> generators;
    {
        std::lock_guard<std::mutex> lock(reading); // not every backend can be read from several threads
        matrices   = so8t_read(rotation);
        generators = so8t_read(generator);
    }
    const int64_t n     = rotation->ne[2];
    const int64_t n_gen = generator->ne[1];

    so8t_matrix target;
    so8t_matrix by_representation[3];
    for (int t = 0; t < 3 && !representations.empty(); ++t) {
        by_representation[t] = so8t_rotation(generators.data(), (so8t_representation) t);
    }
    for (int64_t b = 0; b < n; ++b) {
        if (!representations.empty()) {
            target = by_representation[representations[b]];
        } else if (b < n_gen) {
            target = so8t_rotation(
                generators.data() + b * SO8T_N_GENERATORS, SO8T_VECTOR); // b = 0 for all, or each its own
        }
        so8t_matrix m;
        double difference = 0;
        for (int i = 0; i < SO8T_DIM; ++i) {
            for (int j = 0; j < SO8T_DIM; ++j) {
                m[i][j]    = matrices[(b * SO8T_DIM + i) * SO8T_DIM + j];
                difference = so8t_max(difference, std::fabs(m[i][j] - target[i][j]));
            }
        }
        if (difference <= SO8T_CLOSE) {
            continue;
        }
        const double orthogonality = so8t_orthogonality_error(m);
        const double determinant   = so8t_determinant(m);
        // written so that NaN fails
        if (!(orthogonality <= SO8T_TOLERANCE && std::fabs(determinant - 1) <= SO8T_TOLERANCE)) {
            throw std::runtime_error(
                format("so8t: tensor '%s', rotation %" PRId64 " is not in SO(8): |R^T R - I| = %.3g, det = %.6f",
                    rotation->name, b, orthogonality, determinant));
        }
        if (!(difference <= SO8T_TOLERANCE)) {
            throw std::runtime_error(
                format("so8t: tensor '%s', rotation %" PRId64 " differs from exp of its generator by %.3g",
                    rotation->name, b, difference));
        }
    }
}

static void so8t_check_rotations(const llama_model_so8t & so8t) {
    std::vector<so8t_check_job> jobs;
    for (const auto & layer : so8t.so8t_layers) {
        auto add = [&](const ggml_tensor * rotation, const ggml_tensor * generator,
                       const std::vector<int32_t> & representations) {
            if (rotation) {
                jobs.emplace_back(rotation, generator, representations);
            }
        };
        add(layer.gate_safe, layer.gate_safe_gen, {});
        add(layer.gate_cmd, layer.gate_cmd_gen, {});
        add(layer.q, layer.qk_gen, so8t.head_representation);
        add(layer.k, layer.qk_gen, so8t.head_kv_representation);
        add(layer.v, layer.v_gen, so8t.head_kv_representation);
        add(layer.heads, layer.heads_gen, {});
        add(layer.ffn, layer.ffn_gen, {});
    }
    // 4B with a rotation per block has 34560 of them
    std::vector<std::exception_ptr> errors(jobs.size());
    std::atomic<size_t> next(0);
    std::mutex reading;
    auto work = [&]() {
        for (size_t i = next++; i < jobs.size(); i = next++) {
            try {
                jobs[i].run(reading);
            } catch (...) {
                errors[i] = std::current_exception();
            }
        }
    };
    std::vector<std::thread> threads;
    for (unsigned n = 1; n < std::min(std::thread::hardware_concurrency(), SO8T_MAX_THREADS); ++n) {
        try {
            threads.emplace_back(work);
        } catch (const std::system_error &) {
            break; // this one does the rest
        }
    }
    work();
    for (auto & thread : threads) {
        thread.join();
    }
    for (const auto & error : errors) {
        if (error) {
            std::rethrow_exception(error); // the first in the order of the file
        }
    }
}

void so8t_finish_load(llama_model & model) {
    if (model.arch != LLM_ARCH_SO8T) {
        return;
    }
    const auto & so8t = static_cast<const llama_model_so8t &>(model);
    so8t_check_rotations(so8t);

    // llama.cpp reckons the room for a graph by the tensors that have a name here, and no graph has generators
    const std::unordered_set<const ggml_tensor *> generators(so8t.generators.begin(), so8t.generators.end());
    auto & named = model.tensors_by_name;
    named.erase(std::remove_if(
                    named.begin(), named.end(), [&](const auto & entry) { return generators.count(entry.second) > 0; }),
        named.end());
}

ggml_backend_meta_split_axis so8t_split_axis(const llama_model & model, const std::string & name) {
    if (model.arch != LLM_ARCH_SO8T) {
        return GGML_BACKEND_SPLIT_AXIS_NONE;
    }
    auto contains = [&](const char * part) { return name.find(part) != std::string::npos; };

    const bool is_rotation = contains(".so8t_q_rot.") || contains(".so8t_k_rot.") || contains(".so8t_v_rot.");
    // llama.cpp cannot share a single key-value head out either
    if (static_cast<const llama_model_so8t &>(model).is_explicit(SO8T_SITE_HEADS) || model.hparams.n_head_kv() == 1) {
        return is_rotation || contains(".attn_") || contains("cache_") ? GGML_BACKEND_SPLIT_AXIS_MIRRORED :
                                                                         GGML_BACKEND_SPLIT_AXIS_NONE;
    }
    return is_rotation ? GGML_BACKEND_SPLIT_AXIS_2 : GGML_BACKEND_SPLIT_AXIS_NONE;
}

void so8t_save_rotations(const llama_model & model, gguf_context * ctx) {
    if (model.arch != LLM_ARCH_SO8T) {
        return;
    }
    const auto & so8t = static_cast<const llama_model_so8t &>(model);
    gguf_set_val_u32(ctx, SO8T_KV_FORMAT_VERSION, SO8T_FORMAT_VERSION);
    gguf_set_val_u32(ctx, SO8T_KV_ROTATION_DIMENSION, SO8T_DIM);
    gguf_set_val_str(ctx, SO8T_KV_BASE_ARCHITECTURE, so8t.base_architecture.c_str());
    so8t_set_strings(ctx, SO8T_KV_ROTATION_EXPLICIT, so8t.sites_explicit);
    so8t_set_strings(ctx, SO8T_KV_ROTATION_FOLDED, so8t.sites_folded);
    gguf_set_arr_data(ctx, SO8T_KV_ATTN_HEAD_REPRESENTATION, GGUF_TYPE_INT32, so8t.head_representation.data(),
        so8t.head_representation.size());
    gguf_set_arr_data(ctx, SO8T_KV_ATTN_HEAD_KV_REPRESENTATION, GGUF_TYPE_INT32, so8t.head_kv_representation.data(),
        so8t.head_kv_representation.size());
    for (const ggml_tensor * generator : so8t.generators) {
        gguf_add_tensor(ctx, generator);
    }
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
        const auto & so8t  = model.so8t_layers[il];

        res->t_layer_inp[il] = inpL;

        ggml_tensor * inpSA = inpL;

        // norm
        cur = build_norm(inpL, layer.attn_norm, NULL, LLM_NORM_RMS, il);
        cb(cur, "attn_norm", il);

        // site gate: R_safe, then R_cmd
        if (so8t.gate_safe) {
            cur = so8t_rotate(ctx0, so8t.gate_safe, cur);
            cb(cur, "so8t_gate_safe", il);
            cur = so8t_rotate(ctx0, so8t.gate_cmd, cur);
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
            if (so8t.q) {
                Qcur = so8t_rotate_heads(ctx0, so8t.q, Qcur);
                cb(Qcur, "so8t_q", il);
                Kcur = so8t_rotate_heads(ctx0, so8t.k, Kcur);
                cb(Kcur, "so8t_k", il);
            }
            if (so8t.v) {
                Vcur = so8t_rotate_heads(ctx0, so8t.v, Vcur);
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

            if (so8t.heads) {
                // site heads stands between the attention and its output projection
                cur = build_attn(
                    inp_attn, nullptr, nullptr, nullptr, Qcur, Kcur, Vcur, nullptr, nullptr, nullptr, kq_scale, il);
                cur = so8t_mix_heads(ctx0, so8t.heads, cur, n_embd_head);
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
        if (so8t.ffn) {
            cur = so8t_rotate(ctx0, so8t.ffn, cur);
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

//
// C interface
//

int32_t llama_so8t_n_rotations(const llama_model * model) {
    const auto * so8t = dynamic_cast<const llama_model_so8t *>(model);
    return so8t ? so8t->sites_explicit.size() + so8t->sites_folded.size() : 0;
}

llama_so8t_rotation llama_so8t_get_rotation(const llama_model * model, int32_t rotation) {
    GGML_ASSERT(rotation >= 0 && rotation < llama_so8t_n_rotations(model) && "no such rotation");
    const auto & so8t        = *dynamic_cast<const llama_model_so8t *>(model);
    const int32_t n_explicit = so8t.sites_explicit.size();
    const bool folded        = rotation >= n_explicit;
    return {(folded ? so8t.sites_folded[rotation - n_explicit] : so8t.sites_explicit[rotation]).c_str(), folded};
}
