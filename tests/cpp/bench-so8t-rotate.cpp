// What does a rotation cost? MUL_MAT as it is, MUL_MAT with the hint, an op of its own with the same kernel
// (ggml_custom, which needs no patch), and a copy of the same buffers as the measure of bandwidth.
// The runs are interleaved. The table behind docs/rotation-op.md: usage: bench-so8t-rotate [--json] [N_THREADS]

#include "ggml-so8t-cpu.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

enum rotate_way { PLAIN, HINT, OWN_OP, COPY, N_WAYS };

static const char * const WAYS[N_WAYS] = {"plain", "hint", "own op", "copy"};

struct rotate_case {
    std::string name;
    std::array<int64_t, 4> ne; // x
    int64_t n_rot;
    bool heads = false; // the second dimension of x is rotated and not the first: site heads
};

static void compute_own_op(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
    ggml_compute_params params = {};
    params.ith                 = ith;
    params.nth                 = nth;
    ggml_so8t_cpu_rotate(&params, dst);
}

static ggml_tensor * build(ggml_context * ctx, ggml_tensor * rot, ggml_tensor * x, rotate_way way, bool heads) {
    if (way == COPY) {
        return ggml_cpy(ctx, x, ggml_dup_tensor(ctx, x));
    }
    if (way == OWN_OP) {
        ggml_tensor * args[] = {rot, x};
        return ggml_custom_4d(ctx, GGML_TYPE_F32, x->ne[0], x->ne[1], x->ne[2], x->ne[3], args, 2, compute_own_op,
            GGML_N_TASKS_MAX, nullptr);
    }
    ggml_tensor * out = ggml_mul_mat(ctx, rot, heads ? ggml_cont(ctx, ggml_permute(ctx, x, 1, 0, 2, 3)) : x);
    if (way == HINT) {
        ggml_mul_mat_set_hint(out, GGML_HINT_SRC0_IS_SO8);
    }
    return heads ? ggml_cpy(ctx, ggml_permute(ctx, out, 1, 0, 2, 3), x) : out; // in place, as in the graph of a model
}

// medians in microseconds for each rotation; NAN where there is no such way
static std::array<double, N_WAYS> measure(const rotate_case & c, int n_threads) {
    constexpr int n_rotations = 20; // in one graph, so that starting the threads does not count
    constexpr int n_runs      = 21;

    const size_t n_bytes = c.ne[0] * c.ne[1] * c.ne[2] * c.ne[3] * sizeof(float);
    ggml_context_ptr ctx(ggml_init({n_bytes * (n_rotations * (N_WAYS + 1) + 2) + 64 * 1024 * 1024, nullptr, false}));

    ggml_tensor * rot = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 8, c.n_rot);
    ggml_tensor * x   = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, c.ne[0], c.ne[1], c.ne[2], c.ne[3]);
    for (ggml_tensor * t : {rot, x}) {
        std::fill_n((float *) t->data, ggml_nelements(t), 0.125f); // x stays what it is when it is rotated in place
    }

    std::array<ggml_cgraph *, N_WAYS> graphs = {};
    std::array<ggml_cplan, N_WAYS> plans;
    std::array<std::vector<uint8_t>, N_WAYS> work;
    std::array<std::vector<double>, N_WAYS> times;
    for (int way = 0; way < N_WAYS; ++way) {
        if (c.heads && way == OWN_OP) {
            continue;
        }
        graphs[way] = ggml_new_graph(ctx.get());
        for (int i = 0; i < n_rotations; ++i) {
            ggml_build_forward_expand(graphs[way], build(ctx.get(), rot, x, (rotate_way) way, c.heads));
        }
        plans[way] = ggml_graph_plan(graphs[way], n_threads, nullptr);
        work[way].resize(plans[way].work_size);
        plans[way].work_data = work[way].data();
    }
    for (int run = -2; run < n_runs; ++run) {
        for (int way = 0; way < N_WAYS; ++way) {
            if (!graphs[way]) {
                continue;
            }
            const int64_t t0 = ggml_time_us();
            ggml_graph_compute(graphs[way], &plans[way]);
            if (run >= 0) {
                times[way].push_back(double(ggml_time_us() - t0) / n_rotations);
            }
        }
    }
    std::array<double, N_WAYS> medians;
    for (int way = 0; way < N_WAYS; ++way) {
        std::sort(times[way].begin(), times[way].end());
        medians[way] = times[way].empty() ? NAN : times[way][times[way].size() / 2];
    }
    return medians;
}

static std::string number(double value, const char * format, const char * missing) {
    char text[32];
    snprintf(text, sizeof(text), format, value);
    return std::isnan(value) ? missing : text;
}

int main(int argc, char ** argv) {
    const bool json     = argc > 1 && strcmp(argv[1], "--json") == 0;
    const int n_args    = argc - 1 - json;
    const int n_threads = n_args > 0 ? atoi(argv[1 + json]) : 2;
    if (n_args > 1 || n_threads < 1) {
        fprintf(stderr, "usage: %s [--json] [N_THREADS]\n", argv[0]);
        return 1;
    }
    ggml_time_init();

    std::vector<rotate_case> cases;
    for (int64_t n_tokens : {1, 512}) {
        const std::string suffix = ", " + std::to_string(n_tokens) + (n_tokens == 1 ? " token" : " tokens");
        cases.push_back({"one per head, 32 x 128" + suffix, {8, 16, 32, n_tokens}, 32});
        cases.push_back({"one per block, width 2560" + suffix, {8, 1, 320, n_tokens}, 320});
        cases.push_back({"shared, width 2560" + suffix, {8, 320 * n_tokens, 1, 1}, 1});
        cases.push_back({"heads mixed, 32 x 128" + suffix, {128, 8, 4, n_tokens}, 4, true});
    }

    if (!json) {
        printf("%d threads, microseconds; GB/s: x read and y written\n\n", n_threads);
        printf("| rotation | plain | hint | own op | copy | hint GB/s | hint / copy bandwidth | plain / hint "
               "|\n|---|---|---|---|---|---|---|---|\n");
    }
    for (size_t i = 0; i < cases.size(); ++i) {
        const auto & c        = cases[i];
        const auto t          = measure(c, n_threads);
        const double gb_per_s = 2 * c.ne[0] * c.ne[1] * c.ne[2] * c.ne[3] * sizeof(float) / t[HINT] * 1e-3;
        if (json) {
            printf("%s{\"rotation\": \"%s\", \"n_threads\": %d", i == 0 ? "[\n  " : ",\n  ", c.name.c_str(), n_threads);
            for (int way = 0; way < N_WAYS; ++way) {
                printf(", \"%s_us\": %s", way == OWN_OP ? "own_op" : WAYS[way], number(t[way], "%.2f", "null").c_str());
            }
            printf(", \"hint_gb_per_s\": %.2f, \"hint_over_copy_bandwidth\": %.3f}%s", gb_per_s, t[COPY] / t[HINT],
                i + 1 == cases.size() ? "\n]\n" : "");
        } else {
            printf("| %s |", c.name.c_str());
            for (double value : t) {
                printf(" %s |", number(value, value < 100 ? "%.2f" : "%.0f", "-").c_str());
            }
            printf(" %.1f | %.2f | %.1f |\n", gb_per_s, t[COPY] / t[HINT], t[PLAIN] / t[HINT]);
        }
        fflush(stdout);
    }
    return 0;
}
