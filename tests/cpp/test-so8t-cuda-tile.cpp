// The rotations of the CUDA kernel, run thread by thread on the CPU: the same launch plan and the same functions
// (ggml-so8t-cuda-tile.h), over random layouts, against sums in double. Guards: all memory that a case does not
// own is NaN, and must be NaN afterwards. What this cannot show is what a GPU adds: the compiler for it, real
// concurrency, speed.

#include "ggml-so8t-cuda-tile.h"

#include "ggml-cpp.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <vector>

static constexpr size_t GUARD     = 4096; // floats on both sides
static constexpr double TOLERANCE = 2e-6; // 8 products of numbers below 1, in float32

struct memory {
    std::vector<float> data;
    size_t first; // of the tensor: 16-byte aligned, or misaligned by 4 bytes

    memory(ggml_tensor * t, bool aligned) :
        data(ggml_nbytes(t) / sizeof(float) + 2 * GUARD, NAN),
        first(GUARD) {
        while (((uintptr_t) &data[first] % 16 == 0) != aligned) {
            first++;
        }
        t->data = &data[first];
    }
};

static float & at(const ggml_tensor * t, int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
    return *(float *) ((char *) t->data + i0 * t->nb[0] + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3]);
}

template <typename F>
static void for_each(const ggml_tensor * t, F f) {
    for (int64_t i3 = 0; i3 < t->ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < t->ne[2]; ++i2) {
            for (int64_t i1 = 0; i1 < t->ne[1]; ++i1) {
                for (int64_t i0 = 0; i0 < t->ne[0]; ++i0) {
                    f(i0, i1, i2, i3);
                }
            }
        }
    }
}

static int count_nan(const std::vector<float> & values) {
    int n = 0;
    for (float value : values) {
        n += std::isnan(value);
    }
    return n;
}

template <bool aligned>
static void launch(const so8t_tile_plan & plan, bool & in_shared) {
    for (uint32_t set = 0; set < plan.n_sets; ++set) {
        for (uint32_t block = 0; block < plan.n_blocks; ++block) {
            alignas(16) float shared[SO8T_TILE_SHARED + 16];
            std::fill(std::begin(shared), std::end(shared), NAN);
            for (uint32_t thread = 0; thread < SO8T_TILE_THREADS; ++thread) {
                so8t_tile_load<aligned>(plan.args, block, set, thread, shared);
            }
            for (uint32_t thread = 0; thread < SO8T_TILE_THREADS; ++thread) {
                so8t_tile_rotate<aligned>(plan.args, block, set, thread, shared);
            }
            for (int i = SO8T_TILE_SHARED; i < SO8T_TILE_SHARED + 16; ++i) {
                in_shared = in_shared && std::isnan(shared[i]);
            }
        }
    }
}

enum view { VIEW_NONE, VIEW_COLUMNS, VIEW_SLICE, VIEW_PERMUTED, VIEW_ODD, N_VIEWS };
static const char * const VIEWS[] = {
    "contiguous", "every second column", "slice of wider rows", "columns and matrices swapped", "rows of 4*odd bytes"};

struct layout {
    std::array<int64_t, 4> ne; // x
    int64_t n2;                // matrices
    int64_t n3;                // sets of matrices
    view kind;
    bool aligned;
    int n_sm;
};

// nullptr where the layout is computed as it should be
static const char * failure(const layout & l, std::mt19937 & rng) {
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);

    ggml_context_ptr ctx(ggml_init({16 * ggml_tensor_overhead(), nullptr, true}));

    // x is a view of `whole`, which is as large as the view needs
    const auto [ne0, ne1, ne2, ne3] = l.ne;
    ggml_tensor * whole             = nullptr;
    ggml_tensor * x                 = nullptr;
    switch (l.kind) {
        case VIEW_COLUMNS:
            whole = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, ne0, 2 * ne1, ne2, ne3);
            x     = ggml_view_4d(
                ctx.get(), whole, ne0, ne1, ne2, ne3, 2 * whole->nb[1], whole->nb[2], whole->nb[3], whole->nb[1]);
            break;
        case VIEW_SLICE:
            whole = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, ne0 * ne1 * ne2 + 24, ne3);
            x     = ggml_view_4d(ctx.get(), whole, ne0, ne1, ne2, ne3, 8 * sizeof(float), 8 * ne1 * sizeof(float),
                whole->nb[1], 16 * sizeof(float));
            break;
        case VIEW_PERMUTED:
            whole = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, ne0, ne2, ne1, ne3);
            x     = ggml_permute(ctx.get(), whole, 0, 2, 1, 3);
            break;
        case VIEW_ODD:
            whole = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, ne0 + 1, ne1, ne2, ne3);
            x     = ggml_view_4d(ctx.get(), whole, ne0, ne1, ne2, ne3, whole->nb[1], whole->nb[2], whole->nb[3], 0);
            break;
        default:
            whole = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, ne0, ne1, ne2, ne3);
            x     = ggml_view_4d(ctx.get(), whole, ne0, ne1, ne2, ne3, whole->nb[1], whole->nb[2], whole->nb[3], 0);
    }
    ggml_tensor * rot = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, 8, 8, l.n2, l.n3);
    ggml_tensor * dst = ggml_mul_mat(ctx.get(), rot, x);

    const memory x_memory(whole, l.aligned);
    const memory rot_memory(rot, l.aligned);
    const memory dst_memory(dst, l.aligned);
    x->data = (char *) whole->data + x->view_offs;

    for_each(x, [&](auto... i) { at(x, i...) = uniform(rng); });
    for_each(rot, [&](auto... i) { at(rot, i...) = uniform(rng); });
    const auto x_before = x_memory.data;

    so8t_tile_plan plan;
    if (!so8t_tile_make_plan(dst, l.n_sm, plan)) {
        return "refused";
    }
    if (plan.aligned != (l.aligned && l.kind != VIEW_ODD)) {
        return "wrong choice between vectors and single floats";
    }
    if (plan.n_blocks < 1 || plan.n_blocks > INT32_MAX || plan.n_sets > 65535) {
        return "grid too large for CUDA";
    }
    bool in_shared = true;
    if (plan.aligned) {
        launch<true>(plan, in_shared);
    } else {
        launch<false>(plan, in_shared);
    }
    if (!in_shared) {
        return "wrote past the shared memory";
    }
    if (count_nan(dst_memory.data) != int(dst_memory.data.size() - ggml_nelements(dst))) {
        return "wrote outside dst, or not all of it, or read outside x or rot";
    }
    if (memcmp(x_before.data(), x_memory.data.data(), x_before.size() * sizeof(float)) != 0) {
        return "wrote to x";
    }

    const int64_t r2 = ne2 / l.n2;
    const int64_t r3 = ne3 / l.n3;

    double error = 0;
    for_each(dst, [&](int64_t i, int64_t c, int64_t b, int64_t t) {
        double sum = 0;
        for (int j = 0; j < 8; ++j) {
            sum += (double) at(rot, j, i, b / r2, t / r3) * at(x, j, c, b, t);
        }
        error = std::fmax(error, std::fabs(sum - at(dst, i, c, b, t)));
    });
    return error <= TOLERANCE ? nullptr : "wrong sums";
}

int main() {
    int n_passed = 0;
    int n_failed = 0;
    std::mt19937 rng(42);

    auto check = [&](const layout & l) {
        const char * what = failure(l, rng);
        (what ? n_failed : n_passed)++;
        if (what) {
            fprintf(stderr, "FAIL x [%d,%d,%d,%d], rot [8,8,%d,%d], %s, %saligned, %d multiprocessors: %s\n",
                (int) l.ne[0], (int) l.ne[1], (int) l.ne[2], (int) l.ne[3], (int) l.n2, (int) l.n3, VIEWS[l.kind],
                l.aligned ? "" : "un", l.n_sm, what);
        }
    };

    // the sites of a model, as llama-so8t.cpp builds them
    for (int64_t n_tokens : {1, 2, 17, 33, 130}) {
        for (int n_sm : {1, 40, 132}) {
            for (bool aligned : {true, false}) {
                check({{8, 72 * n_tokens, 1, 1}, 1, 1, VIEW_NONE, aligned, n_sm}); // gate, ffn: one for all blocks
                check({{8, 1, 72, n_tokens}, 72, 1, VIEW_NONE, aligned, n_sm});    // gate, ffn: one per block
                check({{8, 1, 320, n_tokens}, 320, 1, VIEW_NONE, aligned, n_sm});
                for (int kind = 0; kind < N_VIEWS; ++kind) {
                    check({{8, 8, 9, n_tokens}, 9, 1, (view) kind, aligned, n_sm}); // q, k, v: one per head
                    check({{8, 16, 6, n_tokens}, 6, 1, (view) kind, aligned, n_sm});
                }
                check({{8, 64, 4, n_tokens}, 4, 1, VIEW_NONE, aligned, n_sm}); // heads: one per group
            }
        }
    }
    // anything that MUL_MAT allows
    auto integer = [&](int64_t first, int64_t last) {
        return std::uniform_int_distribution<int64_t>(first, last)(rng);
    };
    for (int i = 0; i < 2000; ++i) {
        const int64_t n2 = integer(1, 5);
        const int64_t n3 = integer(0, 3) == 0 ? integer(2, 4) : 1;
        const int64_t r2 = integer(1, 3);
        const int64_t r3 = integer(1, integer(0, 9) == 0 ? 150 : 5);
        const int64_t n1 = integer(1, integer(0, 9) == 0 ? 1500 / (n2 * r2 * n3 * r3) + 1 : 20);
        check({{8, n1, n2 * r2, n3 * r3}, n2, n3, (view) integer(0, N_VIEWS - 1), integer(0, 3) > 0,
            (int) integer(1, 140)});
    }

    // what the plain MUL_MAT must do
    auto refuses = [&](const char * what, ggml_type type, int64_t ne0, int64_t ne1) {
        ggml_context_ptr ctx(ggml_init({16 * ggml_tensor_overhead(), nullptr, true}));
        ggml_tensor * rot = ggml_new_tensor_2d(ctx.get(), type, ne0, ne1);
        so8t_tile_plan plan;
        const bool ok = !so8t_tile_make_plan(
            ggml_mul_mat(ctx.get(), rot, ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, ne0, 3)), 40, plan);
        (ok ? n_passed : n_failed)++;
        if (!ok) {
            fprintf(stderr, "FAIL not refused: %s\n", what);
        }
    };
    refuses("half precision", GGML_TYPE_F16, 8, 8);
    refuses("four rows", GGML_TYPE_F32, 8, 4);
    refuses("16 columns", GGML_TYPE_F32, 16, 8);

    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed == 0 && n_passed > 0 ? 0 : 1;
}
