#pragma once

#include "ggml-cpu-impl.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// rotations, as the fast path of MUL_MAT with GGML_HINT_SRC0_IS_SO8
//
//   rot [8, 8, n2], contiguous matrices, x [8, n1, n2*r, n3] -> dst [8, n1, n2*r, n3], all F32
//   dst[i, c, b, t] = sum_j rot[j, i, b/r]*x[j, c, b, t]
//
// A vector has the same bits for any number of threads, columns and tokens: ggml-so8t-simd.h gives the order of the
// sum. Returns false, with dst untouched, when the shapes are others or params->use_ref asks for the plain MUL_MAT.
bool ggml_so8t_cpu_rotate(const struct ggml_compute_params * params, struct ggml_tensor * dst);

// the same rotation along another dimension than the first: the nodes
//
//   CONT(PERMUTE(x)), MUL_MAT with the hint, CPY(PERMUTE(...), y), where CONT makes the rotated dimension the first
//
// from node i of a graph on, in one pass from x to y without the copies between. x and y may be the same memory.
// Returns the number of nodes after i that are done with it, 0 when the nodes are others.
int ggml_so8t_cpu_try_fuse(const struct ggml_cgraph * cgraph, int i, const struct ggml_compute_params * params);

// what was computed here and not node by node since the program began: rotations, and those of them that were fused.
// For tests that the fast path is taken.
void ggml_so8t_cpu_counts(int64_t * n_rotations, int64_t * n_fused);

// the path this file was compiled for: AVX-512, AVX2, NEON or plain
const char * ggml_so8t_cpu_simd(void);

#ifdef __cplusplus
}
#endif
