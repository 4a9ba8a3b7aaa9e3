#include "ggml-so8t-cpu.h"

#include "ggml-impl.h"
#include "ggml-so8t-simd.h"

#include <algorithm>
#include <atomic>

// matrices that are transposed at a time, 80 kB on the stack. The longer the piece of each token, the better the
// hardware prefetches: a model 2560 wide goes in one piece.
static constexpr int64_t SO8T_CHUNK = 320;

// tokens that a matrix stays in registers for, where it has one column in each, and where it has several: with more
// tokens there are more streams to and from memory than the hardware follows
static constexpr int64_t SO8T_TILE_ONE  = 8;
static constexpr int64_t SO8T_TILE_MANY = 4;

// with fewer vectors, transposing a matrix costs more than it saves
static constexpr int64_t SO8T_MIN_VECTORS = 4;

static std::atomic<int64_t> so8t_n_rotations{0};
static std::atomic<int64_t> so8t_n_fused{0};

// where part ith of nth begins in 0..n - 1; units stay whole
static int64_t so8t_begin(int64_t n, int64_t unit, int64_t ith, int64_t nth) {
    const int64_t n_units = (n + unit - 1) / unit;
    return std::min(n, unit * (n_units * ith / nth));
}

static bool so8t_is_rotation(const struct ggml_tensor * mul_mat) {
    const struct ggml_tensor * rot = mul_mat->src[0];
    const struct ggml_tensor * x   = mul_mat->src[1];

    return rot->type == GGML_TYPE_F32 && x->type == GGML_TYPE_F32 && mul_mat->type == GGML_TYPE_F32 &&
           rot->ne[0] == SO8T_DIM && rot->ne[1] == SO8T_DIM && rot->ne[3] == 1 && rot->nb[0] == sizeof(float) &&
           rot->nb[1] == SO8T_DIM * sizeof(float);
}

static const float * so8t_matrix(const struct ggml_tensor * rot, int64_t i) {
    return (const float *) ((const char *) rot->data + i * rot->nb[2]);
}

bool ggml_so8t_cpu_rotate(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    const struct ggml_tensor * rot = dst->src[0];
    const struct ggml_tensor * x   = dst->src[1];

    if (params->use_ref || !so8t_is_rotation(dst) || x->nb[0] != sizeof(float)) {
        return false;
    }

    if (params->ith == 0) {
        so8t_n_rotations.fetch_add(1, std::memory_order_relaxed);
    }

    const int64_t n1 = x->ne[1];
    const int64_t n2 = x->ne[2];
    const int64_t n3 = x->ne[3];
    const int64_t r  = n2 / rot->ne[2];

    // this thread: vectors [v0, v1) of the n1*n2 in each of the tokens [t0, t1). Two vectors share a cache line.
    const int ith = params->ith;
    const int nth = params->nth;

    const int64_t tile   = n1 == 1 ? SO8T_TILE_ONE : SO8T_TILE_MANY;
    const bool by_tokens = n3 >= tile * nth;

    const int64_t t0 = by_tokens ? so8t_begin(n3, tile, ith, nth) : 0;
    const int64_t t1 = by_tokens ? so8t_begin(n3, tile, ith + 1, nth) : n3;
    const int64_t v0 = by_tokens ? 0 : so8t_begin(n1 * n2, 2, ith, nth);
    const int64_t v1 = by_tokens ? n1 * n2 : so8t_begin(n1 * n2, 2, ith + 1, nth);

    const bool transposed = std::min(n1, v1 - v0) * (t1 - t0) >= SO8T_MIN_VECTORS;

    // matrices [m_begin, m_end), in even chunks
    const int64_t m_begin  = v0 / n1;
    const int64_t m_end    = (v1 + n1 - 1) / n1;
    const int64_t n_chunks = (m_end - m_begin + SO8T_CHUNK - 1) / SO8T_CHUNK;

    alignas(64) float columns[SO8T_CHUNK][SO8T_DIM * SO8T_DIM];

    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
        const int64_t m0 = m_begin + so8t_begin(m_end - m_begin, 2, chunk, n_chunks);
        const int64_t m1 = m_begin + so8t_begin(m_end - m_begin, 2, chunk + 1, n_chunks);

        for (int64_t m = m0; m < m1 && transposed; ++m) {
            so8t_transpose(so8t_matrix(rot, m / r), columns[m - m0]);
        }
        for (int64_t t = t0; t < t1; t += transposed ? tile : 1) {
            for (int64_t m = m0; m < m1; ++m) {
                const int64_t c0 = std::max(v0 - m * n1, (int64_t) 0);
                const int64_t c1 = std::min(v1 - m * n1, n1);

                const char * x_c = (const char *) x->data + c0 * x->nb[1] + m * x->nb[2] + t * x->nb[3];
                char * y_c       = (char *) dst->data + c0 * dst->nb[1] + m * dst->nb[2] + t * dst->nb[3];

                if (transposed && n1 == 1) {
                    so8t_rotate_many(columns[m - m0], x_c, x->nb[3], 0, y_c, dst->nb[3], 0, std::min(tile, t1 - t), 1);
                } else if (transposed) {
                    so8t_rotate_many(columns[m - m0], x_c, x->nb[1], x->nb[3], y_c, dst->nb[1], dst->nb[3], c1 - c0,
                        std::min(tile, t1 - t));
                } else {
                    for (int64_t c = c0; c < c1; ++c, x_c += x->nb[1], y_c += dst->nb[1]) {
                        so8t_rotate_one(so8t_matrix(rot, m / r), (const float *) x_c, (float *) y_c);
                    }
                }
            }
        }
    }
    return true;
}

// CONT(PERMUTE(x)), MUL_MAT, PERMUTE, CPY: the nodes that ggml_so8t_cpu_try_fuse replaces
static bool so8t_is_swap(const struct ggml_tensor * permute) {
    return permute->op == GGML_OP_PERMUTE && permute->op_params[0] == 1 && permute->op_params[1] == 0 &&
           permute->op_params[2] == 2 && permute->op_params[3] == 3;
}

static bool so8t_is_disjoint_or_same(const struct ggml_tensor * a, const struct ggml_tensor * b) {
    const char * a0 = (const char *) a->data;
    const char * b0 = (const char *) b->data;
    return a0 + ggml_nbytes(a) <= b0 || b0 + ggml_nbytes(b) <= a0 || (a0 == b0 && ggml_are_same_stride(a, b));
}

int ggml_so8t_cpu_try_fuse(const struct ggml_cgraph * cgraph, int i, const struct ggml_compute_params * params) {
    static constexpr int n_fused = 4;

    if (i + n_fused > cgraph->n_nodes || cgraph->nodes[i]->op != GGML_OP_CONT ||
        cgraph->nodes[i + 1]->op != GGML_OP_MUL_MAT) {
        return 0;
    }
    const struct ggml_tensor * cont    = cgraph->nodes[i];
    const struct ggml_tensor * mul_mat = cgraph->nodes[i + 1];
    const struct ggml_tensor * swapped = cgraph->nodes[i + 2];
    const struct ggml_tensor * cpy     = cgraph->nodes[i + 3];
    const struct ggml_tensor * rot     = mul_mat->src[0];
    const struct ggml_tensor * x       = cont->src[0];

    if (params->use_ref || ggml_get_op_params_i32(mul_mat, 1) != GGML_HINT_SRC0_IS_SO8 || mul_mat->src[1] != cont ||
        !so8t_is_swap(swapped) || swapped->src[0] != mul_mat || cpy->op != GGML_OP_CPY || cpy->src[0] != swapped ||
        cpy->type != GGML_TYPE_F32 || !ggml_are_same_shape(cpy, swapped) || !so8t_is_rotation(mul_mat) ||
        !so8t_is_swap(x) || x->type != GGML_TYPE_F32 || x->nb[1] != sizeof(float) || cpy->nb[0] != sizeof(float) ||
        cpy->ne[0] % SO8T_DIM != 0 || !ggml_node_has_n_uses(cgraph, i, 1) || !ggml_node_has_n_uses(cgraph, i + 1, 1) ||
        ggml_node_get_use_count(cgraph, i + 2) != 1 || !so8t_is_disjoint_or_same(x->src[0], cpy)) {
        return 0;
    }
    for (int k = 0; k < n_fused; ++k) {
        if ((cgraph->nodes[i + k]->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
            return 0;
        }
    }

    if (params->ith == 0) {
        so8t_n_rotations.fetch_add(1, std::memory_order_relaxed);
        so8t_n_fused.fetch_add(1, std::memory_order_relaxed);
    }

    // x [8, n1, n2, n3], y [n1, 8, n2, n3]; a unit of work is two cache lines of n1
    const int64_t n1 = cpy->ne[0];
    const int64_t n2 = cpy->ne[2];
    const int64_t n3 = cpy->ne[3];
    const int64_t r  = n2 / rot->ne[2];
    const int64_t v1 = so8t_begin(n1 * n2 * n3, 16, params->ith + 1, params->nth);

    for (int64_t v = so8t_begin(n1 * n2 * n3, 16, params->ith, params->nth); v < v1;) {
        const int64_t c = v % n1;
        const int64_t m = v / n1 % n2;
        const int64_t t = v / n1 / n2;
        const int64_t n = std::min(n1 - c, v1 - v);
        so8t_rotate_rows(so8t_matrix(rot, m / r), (const char *) x->data + c * x->nb[1] + m * x->nb[2] + t * x->nb[3],
            x->nb[0], (char *) cpy->data + c * cpy->nb[0] + m * cpy->nb[2] + t * cpy->nb[3], cpy->nb[1], n);
        v += n;
    }
    return n_fused - 1;
}

void ggml_so8t_cpu_counts(int64_t * n_rotations, int64_t * n_fused) {
    *n_rotations = so8t_n_rotations.load(std::memory_order_relaxed);
    *n_fused     = so8t_n_fused.load(std::memory_order_relaxed);
}

const char * ggml_so8t_cpu_simd(void) {
    return SO8T_SIMD;
}
