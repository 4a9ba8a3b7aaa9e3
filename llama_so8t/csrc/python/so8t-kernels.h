#pragma once

#include <stdbool.h>
#include <stdint.h>

// Inner loops of the converter (llama_so8t/kernels.py), which has each of them in numpy too, with the same bytes.
// All are safe to call from several threads at once, on different output.

#ifdef __cplusplus
extern "C" {
#endif

#define SO8T_KERNELS_VERSION 1

int32_t so8t_kernels_version(void);

// float8 e4m3 (finite only: 0x7f and 0xff are NaN) to float32
void so8t_kernels_from_e4m3(const uint8_t * src, float * dst, int64_t n);

// bfloat16 to float32
void so8t_kernels_from_bf16(const uint16_t * src, float * dst, int64_t n);

// index of the first NaN or infinity, or -1
int64_t so8t_kernels_first_nonfinite(const float * src, int64_t n);

// dst = rows * (src * columns), in float64, summed in ascending order without fused multiply-add.
//   columns: n_columns matrices [8][8] (null: none; one serves all groups); group g is columns 8*stride*g ..., in which
//            y[k*stride + h] = sum_i x[i*stride + h] R_g[i][k]; columns past the last full group stay
//   rows:    one matrix [8][8] for every 8 rows (null: none); y[i][c] = sum_k R_b[i][k] x[k][c]
// n_rows must be a multiple of 8 where rows is not null. src may be dst.
void so8t_kernels_rotate(const float * src, float * dst, int64_t n_rows, int64_t n_per_row, const double * columns,
    int64_t n_columns, int64_t n_groups, int64_t stride, const double * rows);

// rows of float32 to a ggml type, byte for byte as llama-quantize does; returns the number of bytes written,
// or, with check, 0 where a value does not fit the type. imatrix: n_per_row importances or null.
uint64_t so8t_kernels_quantize(
    int32_t type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row, const float * imatrix, bool check);

#ifdef __cplusplus
}
#endif
