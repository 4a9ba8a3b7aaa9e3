#pragma once

// cases of upstream's test-backend-ops for rotations: MUL_MAT with GGML_HINT_SRC0_IS_SO8, on matrices that
// are in SO(8). On the CPU the fast path is compared with the plain MUL_MAT. Included by test-backend-ops.cpp.

#include "so8t-algebra.h"

// matrices of all three representations, anything else uniform
static void so8t_initialize_tensors(ggml_context * ctx) {
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
            for (const auto & row : so8t_rotation(generator, (so8t_representation) (i % 3))) {
                data.insert(data.end(), row.begin(), row.end());
            }
        }
        ggml_backend_tensor_set(t, data.data(), 0, ggml_nbytes(t));
    }
}

// x as it is, or with gaps: between columns, between matrices (as in a fused QKV), between tokens
enum so8t_view { SO8T_VIEW_NONE, SO8T_VIEW_COLUMNS, SO8T_VIEW_MATRICES, SO8T_VIEW_TOKENS };

struct test_so8t_rotate : public test_case {
    const std::array<int64_t, 4> ne; // of x: [8, columns per matrix, matrices, tokens]
    const int64_t n_rot;             // ne[2] is a multiple of it
    const int view;

    test_so8t_rotate(std::array<int64_t, 4> ne, int64_t n_rot, so8t_view view = SO8T_VIEW_NONE) :
        ne(ne),
        n_rot(n_rot),
        view(view) {}

    std::string op_desc(ggml_tensor * t) override {
        GGML_UNUSED(t);
        return "SO8T_ROTATE";
    }

    std::string vars() override { return VARS_TO_STR3(ne, n_rot, view); }

    uint64_t op_flops(ggml_tensor * t) override { return 2 * SO8T_DIM * ggml_nelements(t); }

    // our kernel sums in float32; the plain MUL_MAT of CUDA may round to TF32, which costs about 1e-7
    double max_nmse_err(ggml_backend_t backend) override {
        ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
        return strcmp(ggml_backend_reg_name(reg), "CUDA") == 0 ? 1e-12 : test_case::max_nmse_err();
    }

    ggml_tensor * build_graph(ggml_context * ctx) override {
        ggml_tensor * rot = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, SO8T_DIM, SO8T_DIM, n_rot);
        ggml_set_name(rot, "rot");
        ggml_tensor * x = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, ne[0] * (view == SO8T_VIEW_COLUMNS ? 2 : 1),
            ne[1] * (view == SO8T_VIEW_MATRICES ? 2 : 1), ne[2] + (view == SO8T_VIEW_TOKENS), ne[3]);
        ggml_set_name(x, "x");
        if (view != SO8T_VIEW_NONE) {
            x = ggml_view_4d(ctx, x, ne[0], ne[1], ne[2], ne[3], x->nb[1], x->nb[2], x->nb[3], 0);
        }
        ggml_tensor * out = ggml_mul_mat(ctx, rot, x);
        ggml_mul_mat_set_hint(out, GGML_HINT_SRC0_IS_SO8);
        ggml_set_name(out, "out");
        return out;
    }

    void initialize_tensors(ggml_context * ctx) override { so8t_initialize_tensors(ctx); }
};

// site heads: mixed in place, and heads past the last full group stay as they are
struct test_so8t_mix_heads : public test_case {
    const int64_t n_embd_head;
    const int64_t n_head;
    const int64_t n_tokens;

    test_so8t_mix_heads(int64_t n_embd_head, int64_t n_head, int64_t n_tokens) :
        n_embd_head(n_embd_head),
        n_head(n_head),
        n_tokens(n_tokens) {}

    std::string op_desc(ggml_tensor * t) override {
        GGML_UNUSED(t);
        return "SO8T_ROTATE";
    }

    std::string vars() override { return VARS_TO_STR3(n_embd_head, n_head, n_tokens); }

    bool run_whole_graph() override { return true; }

    ggml_tensor * build_graph(ggml_context * ctx) override {
        const int64_t n_groups = n_head / SO8T_DIM;
        ggml_tensor * rot      = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, SO8T_DIM, SO8T_DIM, n_groups);
        ggml_set_name(rot, "rot");
        ggml_tensor * x = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n_embd_head, n_head, n_tokens);
        ggml_set_name(x, "x");

        ggml_tensor * o      = ggml_scale(ctx, x, 0.5f);
        ggml_tensor * groups = ggml_view_4d(
            ctx, o, n_embd_head, SO8T_DIM, n_groups, n_tokens, o->nb[1], SO8T_DIM * o->nb[1], o->nb[2], 0);
        ggml_tensor * out = ggml_mul_mat(ctx, rot, ggml_cont(ctx, ggml_permute(ctx, groups, 1, 0, 2, 3)));
        ggml_mul_mat_set_hint(out, GGML_HINT_SRC0_IS_SO8);
        out = ggml_cpy(ctx, ggml_permute(ctx, out, 1, 0, 2, 3), groups);
        out = ggml_view_3d(ctx, out, n_embd_head, n_head, n_tokens, o->nb[1], o->nb[2], 0);
        out = ggml_scale(ctx, out, 2.0f);
        ggml_set_name(out, "out");
        return out;
    }

    void initialize_tensors(ggml_context * ctx) override { so8t_initialize_tensors(ctx); }
};

// shapes of all sites; one token and many, odd numbers of everything
static void so8t_test_cases(std::vector<std::unique_ptr<test_case>> & cases) {
    for (int64_t n_tokens : {1, 2, 3, 17, 33, 512}) {
        cases.emplace_back(new test_so8t_rotate({8, 72 * n_tokens, 1, 1}, 1)); // gate, ffn: one for all blocks
        cases.emplace_back(new test_so8t_rotate({8, 1, 72, n_tokens}, 72));    // gate, ffn: one per block
        cases.emplace_back(new test_so8t_rotate({8, 8, 9, n_tokens}, 9));      // q, k, v: one per head
        cases.emplace_back(new test_so8t_rotate({8, 16, 6, n_tokens}, 3));     // one per group of heads
        cases.emplace_back(new test_so8t_rotate({8, 7, 5, n_tokens}, 5));      // odd
        cases.emplace_back(new test_so8t_rotate({8, 8, 9, n_tokens}, 9, SO8T_VIEW_COLUMNS));
        cases.emplace_back(new test_so8t_rotate({8, 8, 9, n_tokens}, 9, SO8T_VIEW_MATRICES));
        cases.emplace_back(new test_so8t_rotate({8, 8, 9, n_tokens}, 9, SO8T_VIEW_TOKENS));
        cases.emplace_back(new test_so8t_rotate({8, 1, 72, n_tokens}, 72, SO8T_VIEW_TOKENS));
        cases.emplace_back(new test_so8t_mix_heads(64, 9, n_tokens));
        cases.emplace_back(new test_so8t_mix_heads(24, 16, n_tokens));
    }
    // a wide model, a prompt
    cases.emplace_back(new test_so8t_rotate({8, 1, 320, 512}, 320));
    cases.emplace_back(new test_so8t_rotate({8, 1, 1024, 5}, 1024));
    cases.emplace_back(new test_so8t_rotate({8, 16, 32, 512}, 32));
    cases.emplace_back(new test_so8t_rotate({8, 320 * 512, 1, 1}, 1));
    cases.emplace_back(new test_so8t_rotate({8, 1025, 1, 3}, 1));
    cases.emplace_back(new test_so8t_mix_heads(128, 32, 512));
}
