#pragma once

#include "ggml-cuda/common.cuh"

// rotations, as the fast path of MUL_MAT with GGML_HINT_SRC0_IS_SO8: one launch, no synchronization and no
// memory of its own, so it can be captured in a CUDA graph. Formula and shapes: ggml-so8t-cuda-tile.h.
// Returns false, with nothing launched, when types or shapes are others.
bool ggml_so8t_cuda_rotate(ggml_backend_cuda_context & ctx, ggml_tensor * dst);
