#include "ggml-so8t-cuda.cuh"

#define SO8T_DEVICE __device__ __forceinline__
#define SO8T_UNROLL _Pragma("unroll")
#include "ggml-so8t-cuda-tile.h"

// four blocks on a multiprocessor: 64 registers for each thread
template <bool aligned>
static __global__ void __launch_bounds__(SO8T_TILE_THREADS, 4) so8t_rotate_f32(const so8t_tile_args args) {
    __shared__ alignas(16) float shared[SO8T_TILE_SHARED];

    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();
    so8t_tile_load<aligned>(args, blockIdx.x, blockIdx.y, threadIdx.x, shared);
    __syncthreads();
    so8t_tile_rotate<aligned>(args, blockIdx.x, blockIdx.y, threadIdx.x, shared);
}

bool ggml_so8t_cuda_rotate(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    so8t_tile_plan plan;
    if (!so8t_tile_make_plan(dst, ggml_cuda_info().devices[ctx.device].nsm, plan)) {
        return false;
    }
    const ggml_cuda_kernel_launch_params params(
        dim3(plan.n_blocks, plan.n_sets, 1), dim3(SO8T_TILE_THREADS, 1, 1), 0, ctx.stream());
    ggml_cuda_kernel_launch(plan.aligned ? so8t_rotate_f32<true> : so8t_rotate_f32<false>, params, plan.args);
    return true;
}
