// How should a graph rotate? One table: MUL_MAT as it is, MUL_MAT with the hint, an op of its own with the
// same kernel (ggml_custom, which needs no patch), and a copy of the same buffers as the measure of bandwidth.
// Runs are interleaved and the medians printed, in microseconds: usage: bench-so8t-rotate [n_threads]

#include "ggml-so8t-cpu.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

struct rotate_case {
    std::string            name;
    std::array<int64_t, 4> ne; // x
    int64_t                n_rot;
};

static const char * const WAYS[] = { "plain", "hint", "own op", "copy" };
static constexpr int N_WAYS = 4;

static void compute_own_op(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
    ggml_compute_params params = {};
    params.ith = ith;
    params.nth = nth;
    ggml_so8t_cpu_rotate(&params, dst);
}

static ggml_tensor * build(ggml_context * ctx, ggml_tensor * rot, ggml_tensor * x, int way) {
    if (way == 3) {
        return ggml_cpy(ctx, x, ggml_dup_tensor(ctx, x));
    }
    if (way == 2) {
        ggml_tensor * args[] = { rot, x };
        return ggml_custom_4d(ctx, GGML_TYPE_F32, x->ne[0], x->ne[1], x->ne[2], x->ne[3], args, 2, compute_own_op, GGML_N_TASKS_MAX, nullptr);
    }
    ggml_tensor * out = ggml_mul_mat(ctx, rot, x);
    if (way == 1) {
        ggml_mul_mat_set_hint(out, GGML_HINT_SRC0_IS_SO8);
    }
    return out;
}

// medians in microseconds per node
static std::array<double, N_WAYS> measure(const rotate_case & c, int n_threads) {
    constexpr int n_nodes = 20; // in one graph, so that starting the threads does not count
    constexpr int n_runs  = 21;

    const size_t n_bytes = c.ne[0]*c.ne[1]*c.ne[2]*c.ne[3]*sizeof(float);
    ggml_context_ptr ctx(ggml_init({ n_bytes*(n_nodes*N_WAYS + 2) + 64*1024*1024, nullptr, false }));

    ggml_tensor * rot = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 8, c.n_rot);
    ggml_tensor * x   = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, c.ne[0], c.ne[1], c.ne[2], c.ne[3]);
    for (ggml_tensor * t : { rot, x }) {
        std::fill_n((float *) t->data, ggml_nelements(t), 0.25f);
    }

    std::vector<std::vector<double>> times(N_WAYS);
    std::vector<ggml_cgraph *>       graphs;
    std::vector<ggml_cplan>          plans;
    std::vector<std::vector<uint8_t>> work(N_WAYS);
    for (int way = 0; way < N_WAYS; ++way) {
        graphs.push_back(ggml_new_graph(ctx.get()));
        for (int i = 0; i < n_nodes; ++i) {
            ggml_build_forward_expand(graphs[way], build(ctx.get(), rot, x, way));
        }
        plans.push_back(ggml_graph_plan(graphs[way], n_threads, nullptr));
        work[way].resize(plans[way].work_size);
        plans[way].work_data = work[way].data();
    }
    for (int run = -2; run < n_runs; ++run) {
        for (int way = 0; way < N_WAYS; ++way) {
            const int64_t t0 = ggml_time_us();
            ggml_graph_compute(graphs[way], &plans[way]);
            if (run >= 0) {
                times[way].push_back(double(ggml_time_us() - t0)/n_nodes);
            }
        }
    }
    std::array<double, N_WAYS> medians;
    for (int way = 0; way < N_WAYS; ++way) {
        std::nth_element(times[way].begin(), times[way].begin() + n_runs/2, times[way].end());
        medians[way] = times[way][n_runs/2];
    }
    return medians;
}

int main(int argc, char ** argv) {
    const int n_threads = argc > 1 ? atoi(argv[1]) : 2;
    if (argc > 2 || n_threads < 1) {
        fprintf(stderr, "usage: %s [N_THREADS]\n", argv[0]);
        return 1;
    }
    ggml_time_init();

    printf("%-34s", "");
    for (const char * way : WAYS) {
        printf(" %10s", way);
    }
    printf("   plain/hint  own op/hint  copy/hint\n");
    for (int64_t n_tokens : { 1, 512 }) {
        const std::string suffix = ", " + std::to_string(n_tokens) + (n_tokens == 1 ? " token" : " tokens");
        const rotate_case cases[] = {
            { "one per head, 32 x 128" + suffix,    { 8, 16, 32, n_tokens }, 32 },
            { "one per block, width 2560" + suffix, { 8, 1, 320, n_tokens }, 320 },
            { "shared, width 2560" + suffix,        { 8, 320*n_tokens, 1, 1 }, 1 },
        };
        for (const auto & c : cases) {
            const auto t = measure(c, n_threads);
            printf("%-34s", c.name.c_str());
            for (double value : t) {
                printf(" %10.2f", value);
            }
            printf(" %12.1f %12.2f %10.2f\n", t[0]/t[1], t[2]/t[1], t[3]/t[1]);
        }
    }
    return 0;
}
