#pragma once

// Rotations on a GPU: which part of the work a launch, a block and a thread do. No CUDA in here, so that a test
// can run it thread by thread on the CPU (tests/cpp/test-so8t-cuda-tile.cpp); ggml-so8t-cuda.cu is the kernel.
//
//   rot [8, 8, n2, n3], x [8, n1, n2*r2, n3*r3] -> dst [8, n1, n2*r2, n3*r3], all F32, dst contiguous
//   dst[i, c, b, t] = sum_j rot[j, i, b/r2, t/r3]*x[j, c, b, t], summed in the order j = 0..7
//
// The n1*n2*r2 columns of one t are a row. A block has 16 neighbouring columns and some rows. It first copies the
// matrix of each column to shared memory; then two threads share a column, each with four rows of its matrix in
// registers, and the warps go through the rows. Matrices are read once per block, and a warp reads and writes
// 512 contiguous bytes of each row.

#include "ggml.h"

#include <stdint.h>

#ifndef SO8T_DEVICE // ggml-so8t-cuda.cu says how its compiler spells a device function
#define SO8T_DEVICE inline
#define SO8T_UNROLL
#endif

static constexpr int SO8T_TILE_COLUMNS = 16; // per block
static constexpr int SO8T_TILE_LANES   = 32; // two for each column
static constexpr int SO8T_TILE_WARPS   = 8;  // each takes every eighth row
static constexpr int SO8T_TILE_THREADS = SO8T_TILE_LANES * SO8T_TILE_WARPS;
static constexpr int SO8T_TILE_BATCH   = 2; // rows a thread has in flight

// half a matrix is 32 floats; four more keep the halves that a quarter warp reads on different banks
static constexpr int SO8T_TILE_HALF   = 36;
static constexpr int SO8T_TILE_SHARED = 2 * SO8T_TILE_HALF * SO8T_TILE_COLUMNS;

struct so8t_tile_args {
    const char * rot;
    const char * x;
    float * dst;

    int64_t rot_nb1; // strides in bytes, as in ggml
    int64_t rot_nb2;
    int64_t rot_nb3;
    int64_t x_nb1;
    int64_t x_nb2;
    int64_t x_nb3; // of rows

    uint32_t n1;
    uint32_t r2;
    uint32_t n_columns;      // of a row
    uint32_t n_columns_last; // of the last row
    uint32_t n_column_tiles;
    uint32_t n_rows;      // that share their matrices: blockIdx.y has the next matrices and as many rows
    uint32_t n_rows_tile; // per block
};

struct so8t_tile_plan {
    so8t_tile_args args;
    uint32_t n_blocks; // gridDim.x
    uint32_t n_sets;   // gridDim.y
    bool aligned;      // to 16 bytes: vectors of four floats
};

struct alignas(16) so8t_float4 {
    float v[4];
};

template <bool aligned>
static SO8T_DEVICE so8t_float4 so8t_load4(const char * src) {
    if constexpr (aligned) {
        return *(const so8t_float4 *) src;
    } else {
        const float * f = (const float *) src;
        return {{f[0], f[1], f[2], f[3]}};
    }
}

template <bool aligned>
static SO8T_DEVICE void so8t_store4(float * dst, const so8t_float4 & value) {
    if constexpr (aligned) {
        *(so8t_float4 *) dst = value;
    } else {
        SO8T_UNROLL
        for (int i = 0; i < 4; ++i) {
            dst[i] = value.v[i];
        }
    }
}

// thread 0..255 copies four floats of the matrix of one column to shared memory
template <bool aligned>
static SO8T_DEVICE void so8t_tile_load(
    const so8t_tile_args & a, uint32_t block, uint32_t set, uint32_t thread, float * shared) {
    const uint32_t slot   = thread / SO8T_TILE_COLUMNS;
    const uint32_t row    = thread % SO8T_TILE_COLUMNS / 2;
    const uint32_t part   = thread % 2;
    const uint32_t column = block % a.n_column_tiles * SO8T_TILE_COLUMNS + slot;
    if (column >= a.n_columns) {
        return;
    }
    const char * src = a.rot + column / a.n1 / a.r2 * a.rot_nb2 + set * a.rot_nb3 + row * a.rot_nb1 +
                       part * sizeof(so8t_float4);
    float * dst      = shared + (2 * slot + row / 4) * SO8T_TILE_HALF + row % 4 * 8 + part * 4;
    so8t_store4<true>(dst, so8t_load4<aligned>(src));
}

// after all threads of the block have loaded: thread 0..255 rotates half a column of every eighth row
template <bool aligned>
static SO8T_DEVICE void so8t_tile_rotate(
    const so8t_tile_args & a, uint32_t block, uint32_t set, uint32_t thread, const float * shared) {
    const uint32_t slot   = thread % SO8T_TILE_LANES / 2;
    const uint32_t half   = thread % 2;
    const uint32_t column = block % a.n_column_tiles * SO8T_TILE_COLUMNS + slot;
    if (column >= a.n_columns) {
        return;
    }
    const uint32_t i2 = column / a.n1;
    const uint32_t i1 = column - i2 * a.n1;

    const uint32_t row0   = block / a.n_column_tiles * a.n_rows_tile;
    const uint32_t n_rows = column < a.n_columns_last ? a.n_rows : a.n_rows - 1;
    const uint32_t row1   = row0 + a.n_rows_tile < n_rows ? row0 + a.n_rows_tile : n_rows;

    so8t_float4 rot[4][2];
    SO8T_UNROLL
    for (int i = 0; i < 4; ++i) {
        SO8T_UNROLL
        for (int k = 0; k < 2; ++k) {
            rot[i][k] = so8t_load4<true>((const char *) (shared + (2 * slot + half) * SO8T_TILE_HALF + i * 8 + k * 4));
        }
    }

    const uint32_t row_first = row0 + thread / SO8T_TILE_LANES;
    const int64_t x_step     = SO8T_TILE_WARPS * a.x_nb3;
    const int64_t dst_step   = SO8T_TILE_WARPS * (int64_t) a.n_columns * 8;

    const char * x = a.x + ((int64_t) set * a.n_rows + row_first) * a.x_nb3 + i2 * a.x_nb2 + i1 * a.x_nb1;
    float * dst    = a.dst + (((int64_t) set * a.n_rows + row_first) * a.n_columns + column) * 8 + half * 4;

    for (uint32_t row = row_first; row < row1; row += SO8T_TILE_BATCH * SO8T_TILE_WARPS) {
        so8t_float4 in[SO8T_TILE_BATCH][2];
        SO8T_UNROLL
        for (int b = 0; b < SO8T_TILE_BATCH; ++b) {
            if (row + b * SO8T_TILE_WARPS < row1) {
                in[b][0] = so8t_load4<aligned>(x);
                in[b][1] = so8t_load4<aligned>(x + sizeof(so8t_float4));
            }
            x += x_step;
        }
        SO8T_UNROLL
        for (int b = 0; b < SO8T_TILE_BATCH; ++b) {
            if (row + b * SO8T_TILE_WARPS < row1) {
                so8t_float4 out;
                SO8T_UNROLL
                for (int i = 0; i < 4; ++i) {
                    out.v[i] = rot[i][0].v[0] * in[b][0].v[0];
                    SO8T_UNROLL
                    for (int j = 1; j < 8; ++j) {
                        out.v[i] += rot[i][j / 4].v[j % 4] * in[b][j / 4].v[j % 4];
                    }
                }
                so8t_store4<aligned>(dst, out);
            }
            dst += dst_step;
        }
    }
}

// false where the plain MUL_MAT must do it; n_sm: multiprocessors of the device
static inline bool so8t_tile_make_plan(const ggml_tensor * dst, int n_sm, so8t_tile_plan & plan) {
    const ggml_tensor * rot = dst->src[0];
    const ggml_tensor * x   = dst->src[1];

    if (rot->type != GGML_TYPE_F32 || rot->ne[0] != 8 || rot->ne[1] != 8 || rot->nb[0] != sizeof(float) ||
        x->type != GGML_TYPE_F32 || x->nb[0] != sizeof(float) || dst->type != GGML_TYPE_F32 ||
        !ggml_is_contiguous(dst)) {
        return false;
    }

    int64_t n1     = x->ne[1];
    int64_t n2     = x->ne[2];
    int64_t n_rows = x->ne[3] / rot->ne[3];
    int64_t x_nb3  = x->nb[3];
    int64_t n_last = n1 * n2;
    if (n2 * x->ne[3] == 1) {
        // one matrix and one long row of columns: rows of 16, of which the last may be shorter
        const int64_t n_columns = n1 < SO8T_TILE_COLUMNS ? n1 : SO8T_TILE_COLUMNS;

        n_rows = (n1 + n_columns - 1) / n_columns;
        n_last = n1 - (n_rows - 1) * n_columns;
        n1     = n_columns;
        x_nb3  = n_columns * x->nb[1];
    }
    const int64_t n_columns = n1 * n2;
    const int64_t n_tiles   = (n_columns + SO8T_TILE_COLUMNS - 1) / SO8T_TILE_COLUMNS;
    const int64_t n_sets    = rot->ne[3];

    // few rows per block until every multiprocessor has four blocks, then more rows for the same matrices
    int64_t n_rows_tile = 64;
    while (n_rows_tile > SO8T_TILE_WARPS && n_tiles * n_sets * ((n_rows + n_rows_tile - 1) / n_rows_tile) < 4 * n_sm) {
        n_rows_tile /= 2;
    }
    const int64_t n_blocks = n_tiles * ((n_rows + n_rows_tile - 1) / n_rows_tile);
    if (n_columns > INT32_MAX || n_rows > INT32_MAX || n_blocks < 1 || n_blocks > INT32_MAX || n_sets > UINT16_MAX) {
        return false;
    }

    so8t_tile_args & a = plan.args;
    a.rot              = (const char *) rot->data;
    a.x                = (const char *) x->data;
    a.dst              = (float *) dst->data;
    a.rot_nb1          = rot->nb[1];
    a.rot_nb2          = rot->nb[2];
    a.rot_nb3          = rot->nb[3];
    a.x_nb1            = x->nb[1];
    a.x_nb2            = x->nb[2];
    a.x_nb3            = x_nb3;
    a.n1               = n1;
    a.r2               = n2 / rot->ne[2];
    a.n_columns        = n_columns;
    a.n_columns_last   = n_last;
    a.n_column_tiles   = n_tiles;
    a.n_rows           = n_rows;
    a.n_rows_tile      = n_rows_tile;

    plan.n_blocks = n_blocks;
    plan.n_sets   = n_sets;
    plan.aligned  = (((uintptr_t) a.rot | (uintptr_t) a.x | (uintptr_t) a.dst | a.rot_nb1 | a.rot_nb2 | a.rot_nb3 |
                         a.x_nb1 | a.x_nb2 | a.x_nb3) %
                        sizeof(so8t_float4)) == 0;
    return true;
}
