#include "ggml-so8t-cpu.h"

#include "ggml-impl.h"

#include <algorithm>

static constexpr int64_t SO8T_DIM = 8;

// tokens per tile: small enough for a tile of a wide model to stay in L2, so that the two blocks that
// share a cache line both find it there
static constexpr int64_t SO8T_TILE = 16;

// columns of one matrix before the work is split further
static constexpr int64_t SO8T_COLUMNS = 512;

static inline void so8t_transpose(const char * rot, size_t nb1, float column[SO8T_DIM][SO8T_DIM]) {
    for (int64_t i = 0; i < SO8T_DIM; ++i) {
        const float * row = (const float *) (rot + i*nb1);
        for (int64_t j = 0; j < SO8T_DIM; ++j) {
            column[j][i] = row[j];
        }
    }
}

static inline void so8t_rotate_one(const float column[SO8T_DIM][SO8T_DIM], const float * x, float * y) {
    float acc[SO8T_DIM];
    for (int64_t i = 0; i < SO8T_DIM; ++i) {
        acc[i] = column[0][i]*x[0];
    }
    for (int64_t j = 1; j < SO8T_DIM; ++j) {
        for (int64_t i = 0; i < SO8T_DIM; ++i) {
            acc[i] += column[j][i]*x[j];
        }
    }
    for (int64_t i = 0; i < SO8T_DIM; ++i) {
        y[i] = acc[i];
    }
}

bool ggml_so8t_cpu_rotate(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    const struct ggml_tensor * rot = dst->src[0];
    const struct ggml_tensor * x   = dst->src[1];

    if (params->use_ref ||
        rot->type != GGML_TYPE_F32 || rot->ne[0] != SO8T_DIM || rot->ne[1] != SO8T_DIM || rot->nb[0] != sizeof(float) ||
        x->type != GGML_TYPE_F32 || x->nb[0] != sizeof(float) || !ggml_is_contiguous(dst)) {
        return false;
    }

    const int64_t n1 = x->ne[1];
    const int64_t n2 = x->ne[2];
    const int64_t n3 = x->ne[3];
    const int64_t r2 = n2/rot->ne[2];
    const int64_t r3 = n3/rot->ne[3];

    // a unit of work: one matrix, SO8T_COLUMNS columns, SO8T_TILE tokens (one token where n3 has its own matrices)
    const int64_t tile    = rot->ne[3] == 1 ? SO8T_TILE : 1;
    const int64_t n_tiles = (n3 + tile - 1)/tile;
    const int64_t n_parts = (n1 + SO8T_COLUMNS - 1)/SO8T_COLUMNS;
    const int64_t n_units = n_tiles*n2*n_parts;

    const int64_t u0 = n_units*(params->ith    )/params->nth;
    const int64_t u1 = n_units*(params->ith + 1)/params->nth;

    float column[SO8T_DIM][SO8T_DIM];

    for (int64_t u = u0; u < u1; ++u) {
        const int64_t part = u%n_parts;
        const int64_t i2   = (u/n_parts)%n2;
        const int64_t t0   = (u/n_parts/n2)*tile;
        const int64_t t1   = std::min(t0 + tile, n3);
        const int64_t c0   = part*SO8T_COLUMNS;
        const int64_t c1   = std::min(c0 + SO8T_COLUMNS, n1);

        so8t_transpose((const char *) rot->data + (i2/r2)*rot->nb[2] + (t0/r3)*rot->nb[3], rot->nb[1], column);

        for (int64_t t = t0; t < t1; ++t) {
            const char * x_t = (const char *) x->data + i2*x->nb[2] + t*x->nb[3];
            char       * y_t = (char *) dst->data + i2*dst->nb[2] + t*dst->nb[3];

            for (int64_t c = c0; c < c1; ++c) {
                so8t_rotate_one(column, (const float *) (x_t + c*x->nb[1]), (float *) (y_t + c*dst->nb[1]));
            }
        }
    }

    return true;
}
