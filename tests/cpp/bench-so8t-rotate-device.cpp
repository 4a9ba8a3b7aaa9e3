// Rotations on a device, through its backend as a model uses it (on a GPU: replayed CUDA graphs): a chain of
// MUL_MATs with the hint, the same chain without it, and a chain of copies of the same buffers. Medians per node,
// runs interleaved. Usage: bench-so8t-rotate-device [--device NAME] [--json]; NAME is the first GPU by default.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

struct rotate_case {
    std::string name;
    std::array<int64_t, 4> ne; // x
    int64_t n_rot;
    int n_nodes;
};

enum way { WAY_HINT, WAY_PLAIN, WAY_COPY, N_WAYS };
static const char * const WAYS[] = {"hint", "plain", "copy"};

// n_nodes nodes, each of which reads what the one before it wrote: two buffers, taken in turns
struct chain {
    ggml_context_ptr ctx;
    ggml_gallocr_ptr alloc;
    ggml_cgraph * graph = nullptr;

    bool init(ggml_backend_t backend, const rotate_case & c, way how) {
        ctx.reset(
            ggml_init({(c.n_nodes + 8) * ggml_tensor_overhead() + ggml_graph_overhead_custom(c.n_nodes + 8, false),
                nullptr, true}));
        alloc.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)));
        graph = ggml_new_graph_custom(ctx.get(), c.n_nodes + 8, false);

        ggml_tensor * rot = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 8, c.n_rot);
        ggml_tensor * cur = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, c.ne[0], c.ne[1], c.ne[2], c.ne[3]);
        ggml_tensor * x   = cur;
        ggml_set_input(rot);
        ggml_set_input(x);
        if (how == WAY_COPY) {
            ggml_build_forward_expand(graph, rot);
        }
        for (int i = 0; i < c.n_nodes; ++i) {
            cur = how == WAY_COPY ? ggml_cont(ctx.get(), cur) : ggml_mul_mat(ctx.get(), rot, cur);
            if (how == WAY_HINT) {
                ggml_mul_mat_set_hint(cur, GGML_HINT_SRC0_IS_SO8);
            }
        }
        ggml_set_output(cur);
        ggml_build_forward_expand(graph, cur);
        if (!ggml_gallocr_alloc_graph(alloc.get(), graph)) {
            return false;
        }
        // a signed permutation of the axes: values stay as they are along the chain
        std::vector<float> data(ggml_nelements(rot), 0.0f);
        for (size_t i = 0; i < data.size() / 8; ++i) {
            data[i * 8 + (i + 1) % 8] = 1.0f;
        }
        ggml_backend_tensor_set(rot, data.data(), 0, ggml_nbytes(rot));
        data.assign(ggml_nelements(x), 0.5f);
        ggml_backend_tensor_set(x, data.data(), 0, ggml_nbytes(x));
        return true;
    }
};

// microseconds per node
static bool measure(ggml_backend_t backend, const rotate_case & c, std::array<double, N_WAYS> & medians) {
    constexpr int n_warmup = 4; // a CUDA graph is captured in the second evaluation
    constexpr int n_runs   = 21;

    std::array<chain, N_WAYS> chains;
    for (int how = 0; how < N_WAYS; ++how) {
        if (!chains[how].init(backend, c, (way) how)) {
            return false;
        }
    }
    std::array<std::vector<double>, N_WAYS> times;
    for (int run = -n_warmup; run < n_runs; ++run) {
        for (int how = 0; how < N_WAYS; ++how) {
            ggml_backend_synchronize(backend);
            const int64_t t0 = ggml_time_us();
            if (ggml_backend_graph_compute(backend, chains[how].graph) != GGML_STATUS_SUCCESS) {
                return false;
            }
            if (run >= 0) {
                times[how].push_back(double(ggml_time_us() - t0) / c.n_nodes);
            }
        }
    }
    for (int how = 0; how < N_WAYS; ++how) {
        std::nth_element(times[how].begin(), times[how].begin() + n_runs / 2, times[how].end());
        medians[how] = times[how][n_runs / 2];
    }
    return true;
}

int main(int argc, char ** argv) {
    const char * name = nullptr;
    bool json         = false;
    for (int i = 1; i < argc; ++i) {
        if (strcmp(argv[i], "--json") == 0) {
            json = true;
        } else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc) {
            name = argv[++i];
        } else {
            fprintf(stderr, "usage: %s [--device NAME] [--json]\n", argv[0]);
            return 1;
        }
    }
    ggml_time_init();
    ggml_backend_load_all();
    ggml_backend_dev_t device = name ? ggml_backend_dev_by_name(name) :
                                       ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU);
    if (!device) {
        fprintf(stderr, "%s: no device %s; there are:", argv[0], name ? name : "of type GPU");
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            fprintf(stderr, " %s", ggml_backend_dev_name(ggml_backend_dev_get(i)));
        }
        fprintf(stderr, "\n");
        return 1;
    }
    ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    if (!backend) {
        fprintf(stderr, "%s: device %s does not start\n", argv[0], ggml_backend_dev_name(device));
        return 1;
    }

    if (json) {
        printf("{\"device\": \"%s\", \"description\": \"%s\", \"cases\": [", ggml_backend_dev_name(device),
            ggml_backend_dev_description(device));
    } else {
        printf("%s: %s\nmicroseconds per node; GB/s of x, matrices and result with the hint\n\n",
            ggml_backend_dev_name(device), ggml_backend_dev_description(device));
        printf(
            "%-42s %10s %10s %10s %12s %11s %8s\n", "", WAYS[0], WAYS[1], WAYS[2], "plain/hint", "copy/hint", "GB/s");
    }
    const char * separator = "";
    for (int64_t n_tokens : {1, 512, 8192}) {
        const std::string suffix  = ", " + std::to_string(n_tokens) + (n_tokens == 1 ? " token" : " tokens");
        const int n_nodes         = n_tokens == 1 ? 200 : 10;
        const rotate_case cases[] = {
            {"one per head, 32 x 128" + suffix, {8, 16, 32, n_tokens}, 32, n_nodes},
            {"one per block, width 2560" + suffix, {8, 1, 320, n_tokens}, 320, n_nodes},
            {"shared, width 2560" + suffix, {8, 320 * n_tokens, 1, 1}, 1, n_nodes},
        };
        for (const auto & c : cases) {
            std::array<double, N_WAYS> t;
            if (!measure(backend.get(), c, t)) {
                fprintf(stderr, "%s: %s failed on %s\n", argv[0], c.name.c_str(), ggml_backend_dev_name(device));
                return 1;
            }
            const double n_bytes = sizeof(float) * (2.0 * c.ne[0] * c.ne[1] * c.ne[2] * c.ne[3] + 64.0 * c.n_rot);
            const double rate    = n_bytes / t[WAY_HINT] / 1e3;
            if (json) {
                printf("%s\n  {\"name\": \"%s\", \"bytes\": %.0f, \"hint_us\": %.3f, \"plain_us\": %.3f, \"copy_us\": "
                       "%.3f, \"hint_gb_per_s\": %.1f}",
                    separator, c.name.c_str(), n_bytes, t[WAY_HINT], t[WAY_PLAIN], t[WAY_COPY], rate);
                separator = ",";
            } else {
                printf("%-42s %10.2f %10.2f %10.2f %12.1f %11.2f %8.1f\n", c.name.c_str(), t[WAY_HINT], t[WAY_PLAIN],
                    t[WAY_COPY], t[WAY_PLAIN] / t[WAY_HINT], t[WAY_COPY] / t[WAY_HINT], rate);
            }
            fflush(stdout);
        }
    }
    if (json) {
        printf("\n]}\n");
    }
    return 0;
}
