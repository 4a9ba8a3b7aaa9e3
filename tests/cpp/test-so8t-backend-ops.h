#pragma once

// cases of upstream's test-backend-ops for rotations: MUL_MAT with GGML_HINT_SRC0_IS_SO8, on matrices that
// are in SO(8). On the CPU the fast path is compared with the plain MUL_MAT. Included by test-backend-ops.cpp.

#include "so8t-algebra.h"

struct test_so8t_rotate : public test_case {
    const std::array<int64_t, 4> ne;    // of x: [8, columns per matrix, matrices, tokens]
    const int64_t                n_rot; // matrices, ne[2] is a multiple of it
    const bool                   view;  // x is a strided view

    test_so8t_rotate(std::array<int64_t, 4> ne, int64_t n_rot, bool view = false) : ne(ne), n_rot(n_rot), view(view) {}

    std::string op_desc(ggml_tensor * t) override {
        GGML_UNUSED(t);
        return "SO8T_ROTATE";
    }

    std::string vars() override {
        return VARS_TO_STR3(ne, n_rot, view);
    }

    uint64_t op_flops(ggml_tensor * t) override {
        return 2*SO8T_DIM*ggml_nelements(t);
    }

    // our kernel sums in float32; the plain MUL_MAT of CUDA may round to TF32, which costs about 1e-7
    double max_nmse_err(ggml_backend_t backend) override {
        ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
        return strcmp(ggml_backend_reg_name(reg), "CUDA") == 0 ? 1e-12 : test_case::max_nmse_err();
    }

    ggml_tensor * build_graph(ggml_context * ctx) override {
        ggml_tensor * rot = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, SO8T_DIM, SO8T_DIM, n_rot);
        ggml_set_name(rot, "rot");
        ggml_tensor * x = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, ne[0], ne[1]*(view ? 2 : 1), ne[2], ne[3]);
        ggml_set_name(x, "x");
        if (view) {
            x = ggml_view_4d(ctx, x, ne[0], ne[1], ne[2], ne[3], x->nb[1], x->nb[2], x->nb[3], 0);
        }
        ggml_tensor * out = ggml_mul_mat(ctx, rot, x);
        ggml_mul_mat_set_hint(out, GGML_HINT_SRC0_IS_SO8);
        ggml_set_name(out, "out");
        return out;
    }

    void initialize_tensors(ggml_context * ctx) override {
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t != NULL; t = ggml_get_next_tensor(ctx, t)) {
            if (strcmp(t->name, "rot") != 0) {
                init_tensor_uniform(t);
                continue;
            }
            std::mt19937 rng(42);
            std::normal_distribution<float> normal(0.0f, 0.5f);
            std::vector<float> data;
            for (int64_t i = 0; i < t->ne[2]; ++i) {
                float generator[SO8T_N_GENERATORS];
                for (float & a : generator) {
                    a = normal(rng);
                }
                for (const auto & row : so8t_rotation(generator, (so8t_representation) (i%3))) {
                    data.insert(data.end(), row.begin(), row.end());
                }
            }
            ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
        }
    }
};

// shapes of all sites: shared, one per block, one per head, groups of heads; one token and many, odd sizes
static void so8t_test_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    for (int64_t n_tokens : { 1, 2, 17, 33, 512 }) {
        cases.emplace_back(new test_so8t_rotate({ 8, 72*n_tokens, 1, 1 }, 1));      // gate, ffn: one for all blocks
        cases.emplace_back(new test_so8t_rotate({ 8, 1, 72, n_tokens }, 72));       // gate, ffn: one per block
        cases.emplace_back(new test_so8t_rotate({ 8, 8, 9, n_tokens }, 9));         // q, k, v: one per head
        cases.emplace_back(new test_so8t_rotate({ 8, 64, 4, n_tokens }, 4));        // heads: one per group
        cases.emplace_back(new test_so8t_rotate({ 8, 16, 6, n_tokens }, 3));        // broadcast over heads
        cases.emplace_back(new test_so8t_rotate({ 8, 8, 9, n_tokens }, 9, true));   // strided x
    }
    cases.emplace_back(new test_so8t_rotate({ 8, 1, 320, 512 }, 320));
    cases.emplace_back(new test_so8t_rotate({ 8, 1025, 1, 3 }, 1));
}
