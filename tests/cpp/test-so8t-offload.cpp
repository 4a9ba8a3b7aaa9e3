// Where the scheduler puts a rotation: beside its neighbours. 8x8 matrices say nothing about the size of a batch,
// so a backend that offloads by ne[1] must not be asked. The GPU is the CPU under another name, which offloads as
// ggml-cuda does: products with 32 columns or more.

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <cstdio>
#include <vector>

static ggml_backend_device gpu;
static ggml_backend_buffer_type gpu_buffer_type;

static bool offload(ggml_backend_dev_t /*dev*/, const ggml_tensor * op) {
    return op->op == GGML_OP_MUL_MAT && op->ne[1] >= 32;
}

static bool is_host(ggml_backend_buffer_type_t /*buft*/) {
    return false;
}

static bool supports(ggml_backend_dev_t /*dev*/, ggml_backend_buffer_type_t buft) {
    return buft == &gpu_buffer_type;
}

static ggml_backend_buffer_type_t get_buffer_type(ggml_backend_dev_t /*dev*/) {
    return &gpu_buffer_type;
}

static enum ggml_backend_dev_type get_type(ggml_backend_dev_t /*dev*/) {
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

int main() {
    ggml_backend_ptr cpu_backend(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    ggml_backend_ptr gpu_backend(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));

    gpu                           = *ggml_backend_get_device(cpu_backend.get());
    gpu.iface.get_type            = get_type;
    gpu.iface.get_buffer_type     = get_buffer_type;
    gpu.iface.supports_buft       = supports;
    gpu.iface.offload_op          = offload;
    gpu_buffer_type               = *ggml_backend_cpu_buffer_type();
    gpu_buffer_type.device        = &gpu;
    gpu_buffer_type.iface.is_host = is_host;
    gpu_backend->device           = &gpu;

    int n_passed = 0;
    int n_failed = 0;

    // a projection, a rotation of its result, a projection; all weights on one backend
    auto check = [&](int64_t n_tokens, bool shared, bool weights_on_gpu, bool expected_on_gpu) {
        const int64_t n_embd = 512;

        ggml_context_ptr weights(ggml_init({8 * ggml_tensor_overhead(), nullptr, true}));
        ggml_tensor * w0  = ggml_new_tensor_2d(weights.get(), GGML_TYPE_F32, n_embd, n_embd);
        ggml_tensor * w1  = ggml_new_tensor_2d(weights.get(), GGML_TYPE_F32, n_embd, n_embd);
        ggml_tensor * rot = ggml_new_tensor_3d(weights.get(), GGML_TYPE_F32, 8, 8, shared ? 1 : 8);
        ggml_backend_buffer_ptr buffer(
            ggml_backend_alloc_ctx_tensors(weights.get(), (weights_on_gpu ? gpu_backend : cpu_backend).get()));
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);

        ggml_context_ptr ctx(ggml_init({32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
        ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, n_tokens);
        ggml_set_input(x);
        ggml_tensor * before  = ggml_mul_mat(ctx.get(), w0, x);
        ggml_tensor * blocks  = shared ? ggml_reshape_2d(ctx.get(), before, 8, n_embd / 8 * n_tokens) :
                                         ggml_reshape_4d(ctx.get(), before, 8, 8, 8, n_tokens);
        ggml_tensor * rotated = ggml_mul_mat(ctx.get(), rot, blocks);
        ggml_mul_mat_set_hint(rotated, GGML_HINT_SRC0_IS_SO8);
        ggml_tensor * after = ggml_mul_mat(ctx.get(), w1, ggml_reshape_2d(ctx.get(), rotated, n_embd, n_tokens));
        ggml_set_output(after);
        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, after);

        std::vector<ggml_backend_t> backends = {gpu_backend.get(), cpu_backend.get()};
        ggml_backend_sched_ptr sched(
            ggml_backend_sched_new(backends.data(), nullptr, 2, GGML_DEFAULT_GRAPH_SIZE, false, true));
        bool ok                       = ggml_backend_sched_alloc_graph(sched.get(), graph);
        const ggml_backend_t expected = (expected_on_gpu ? gpu_backend : cpu_backend).get();
        for (ggml_tensor * node : {before, rotated, after}) {
            ok = ok && ggml_backend_sched_get_tensor_backend(sched.get(), node) == expected;
        }
        (ok ? n_passed : n_failed)++;
        if (!ok) {
            fprintf(stderr, "FAIL %d tokens, %s, weights on the %s: not all on the %s\n", (int) n_tokens,
                shared ? "one rotation for all blocks" : "one per head", weights_on_gpu ? "GPU" : "CPU",
                expected_on_gpu ? "GPU" : "CPU");
        }
    };
    for (bool shared : {true, false}) {
        check(1, shared, false, false); // decode: copying x to the GPU and back would cost more than the rotation
        check(1, shared, true, true);
        check(512, shared, false, true); // prompt: the projections are offloaded, and the rotation goes with them
        check(512, shared, true, true);
    }

    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed == 0 && n_passed > 0 ? 0 : 1;
}
