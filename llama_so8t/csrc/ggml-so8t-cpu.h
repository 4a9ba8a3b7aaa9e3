#pragma once

#include "ggml-cpu-impl.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

// rotations, as the fast path of MUL_MAT with GGML_HINT_SRC0_IS_SO8
//
//   rot [8, 8, n2, n3], x [8, n1, n2*r2, n3*r3] -> dst [8, n1, n2*r2, n3*r3], all F32, dst contiguous
//   dst[i, c, b, t] = sum_j rot[j, i, b/r2, t/r3]*x[j, c, b, t]
//
// summed in the order j = 0..7 for any number of threads. Returns false, with dst untouched, when the
// shapes are others or params->use_ref asks for the plain MUL_MAT.
bool ggml_so8t_cpu_rotate(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
