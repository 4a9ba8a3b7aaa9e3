// The rotation kernel, bit for bit: every path this machine can run (the kernel is compiled into this program once
// for each instruction set), all layouts, numbers of threads and tokens, against a scalar sum in the documented
// order. Then ggml itself: that MUL_MAT with the hint takes the fast path, and that heads are mixed in one pass.

#include "ggml-so8t-cpu.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#define VARIANT(name)                                                                                                  \
    extern "C" bool so8t_rotate_##name(const ggml_compute_params * params, ggml_tensor * dst);                         \
    extern "C" int so8t_try_fuse_##name(const ggml_cgraph * cgraph, int i, const ggml_compute_params * params);        \
    extern "C" const char * so8t_simd_##name(void);

VARIANT(plain)
#if defined(SO8T_TEST_X86)
VARIANT(avx2)
VARIANT(avx512)
#elif defined(SO8T_TEST_NEON)
VARIANT(neon)
#endif

struct rotate_path {
    const char * name;
    bool runs_here;
    bool (*rotate)(const ggml_compute_params *, ggml_tensor *);
    int (*try_fuse)(const ggml_cgraph *, int, const ggml_compute_params *);
    const char * (*simd)(void);
};

static std::vector<rotate_path> all_paths() {
    return {
        {"plain", true, so8t_rotate_plain, so8t_try_fuse_plain, so8t_simd_plain},
#if defined(SO8T_TEST_X86)
        {"AVX2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), so8t_rotate_avx2, so8t_try_fuse_avx2,
            so8t_simd_avx2},
        {"AVX-512",
            __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl"),
            so8t_rotate_avx512, so8t_try_fuse_avx512, so8t_simd_avx512},
#elif defined(SO8T_TEST_NEON)
        {"NEON", true, so8t_rotate_neon, so8t_try_fuse_neon, so8t_simd_neon},
#endif
    };
}

// |R|, |x| < 1: four products, four fmas and three sums, all below 8, so that each is off by 2^-22 at most
static constexpr double ROUNDING = 11.0 / (1 << 22);

static int n_passed = 0;
static int n_failed = 0;

static void expect(bool ok, const std::string & what) {
    (ok ? n_passed : n_failed)++;
    if (!ok) {
        fprintf(stderr, "FAIL %s\n", what.c_str());
    }
}

// y_i of one vector; elements of x are stride floats apart
static float expected(const float * rot, const float * x, size_t stride, int i, bool fma) {
    float p[4];
    for (int k = 0; k < 4; ++k) {
        const float a = rot[8 * i + k] * x[k * stride];
        const float b = rot[8 * i + k + 4], c = x[(k + 4) * stride];
        p[k] = fma ? std::fma(b, c, a) : b * c + a;
    }
    return (p[0] + p[1]) + (p[2] + p[3]);
}

static bool same_bits(float a, float b) {
    return memcmp(&a, &b, sizeof(a)) == 0;
}

static bool is_fma(const char * simd) {
#if defined(__FP_FAST_FMAF)
    return true;
#else
    return strcmp(simd, "plain") != 0;
#endif
}

static void fill_random(ggml_tensor * t) {
    std::mt19937 rng(42);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    for (int64_t i = 0; i < ggml_nelements(t); ++i) {
        ((float *) t->data)[i] = uniform(rng);
    }
}

static ggml_context_ptr make_context() {
    return ggml_context_ptr(ggml_init({64 * 1024 * 1024, nullptr, false}));
}

struct layout {
    const char * name;
    int64_t n1, n2, n3; // columns, matrices, tokens; x [8, n1, n2, n3]
    int64_t n_rot;
    bool view = false; // rows, matrices and tokens of x with gaps between them

    std::string describe(const rotate_path & path) const {
        return std::string(path.name) + ": " + name + " " + std::to_string(n1) + "x" + std::to_string(n2) + ", " +
               std::to_string(n3) + " tokens";
    }
};

static std::vector<layout> all_layouts() {
    std::vector<layout> result;
    for (int64_t n : {1, 2, 3, 4, 5, 17, 33, 130}) {
        result.push_back({"shared", 9 * n, 1, 1, 1});
        result.push_back({"shared, rows of tokens", 9, 1, n, 1, true});
        result.push_back({"one per block", 1, 9, n, 9});
        result.push_back({"one per block, strided", 1, 9, n, 9, true});
        result.push_back({"one per block, wide", 1, 515, n, 515});
        result.push_back({"one per head", 8, 9, n, 9});
        result.push_back({"one per head, strided", 3, 5, n, 5, true});
        result.push_back({"one per group of heads", 16, 6, n, 3});
    }
    return result;
}

static void test_layout(const rotate_path & path, const layout & c) {
    auto ctx          = make_context();
    ggml_tensor * rot = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 8, c.n_rot);
    ggml_tensor * x = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, c.view ? 11 : 8, c.n1 + c.view, c.n2 + c.view, c.n3);
    fill_random(rot);
    fill_random(x);
    if (c.view) {
        x = ggml_view_4d(ctx.get(), x, 8, c.n1, c.n2, c.n3, x->nb[1], x->nb[2], x->nb[3], sizeof(float));
    }
    ggml_tensor * y = ggml_mul_mat(ctx.get(), rot, x);
    const bool fma  = is_fma(path.simd());

    for (int nth : {1, 2, 3, 8, 64}) {
        memset(y->data, 0xff, ggml_nbytes(y)); // NaN
        bool done = true;
        for (int ith = 0; ith < nth; ++ith) {
            ggml_compute_params params = {};
            params.ith                 = ith;
            params.nth                 = nth;
            done                       = path.rotate(&params, y) && done;
        }
        expect(done, c.describe(path) + ": taken");

        int64_t n_wrong = 0;
        double largest  = 0; // error against a sum in double
        for (int64_t t = 0; t < c.n3; ++t) {
            for (int64_t m = 0; m < c.n2; ++m) {
                for (int64_t v = 0; v < c.n1; ++v) {
                    const float * x_v = (const float *) ((const char *) x->data + v * x->nb[1] + m * x->nb[2] +
                                                         t * x->nb[3]);
                    const float * y_v = (const float *) ((const char *) y->data + v * y->nb[1] + m * y->nb[2] +
                                                         t * y->nb[3]);
                    const float * r   = (const float *) rot->data + 64 * (m / (c.n2 / c.n_rot));
                    for (int i = 0; i < 8; ++i) {
                        double sum = 0;
                        for (int j = 0; j < 8; ++j) {
                            sum += (double) r[8 * i + j] * x_v[j];
                        }
                        n_wrong += !same_bits(y_v[i], expected(r, x_v, 1, i, fma));
                        largest  = std::fmax(largest, std::fabs(y_v[i] - sum));
                    }
                }
            }
        }
        expect(n_wrong == 0,
            c.describe(path) + ", " + std::to_string(nth) + " threads: " + std::to_string(n_wrong) + " values differ");
        expect(largest < ROUNDING, c.describe(path) + ": error " + std::to_string(largest));
    }
}

// what the kernel leaves to the plain MUL_MAT
static void test_refused(const rotate_path & path) {
    auto ctx                   = make_context();
    ggml_compute_params params = {};
    params.nth                 = 1;

    auto refuses = [&](ggml_tensor * rot, ggml_tensor * x) {
        ggml_tensor * y = ggml_mul_mat(ctx.get(), rot, x);
        memset(y->data, 0xff, ggml_nbytes(y));
        const std::vector<char> before((char *) y->data, (char *) y->data + ggml_nbytes(y));
        return !path.rotate(&params, y) && memcmp(before.data(), y->data, before.size()) == 0;
    };
    auto tensor = [&](ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3) {
        return ggml_new_tensor_4d(ctx.get(), type, ne0, ne1, ne2, ne3);
    };
    ggml_tensor * rot = tensor(GGML_TYPE_F32, 8, 8, 2, 1);
    ggml_tensor * x   = tensor(GGML_TYPE_F32, 8, 3, 2, 4);
    expect(refuses(tensor(GGML_TYPE_F32, 16, 16, 2, 1), tensor(GGML_TYPE_F32, 16, 3, 2, 4)),
        std::string(path.name) + ": 16x16 is refused");
    expect(refuses(tensor(GGML_TYPE_F16, 8, 8, 2, 1), x), std::string(path.name) + ": F16 matrices are refused");
    expect(refuses(tensor(GGML_TYPE_F32, 8, 8, 2, 4), x),
        std::string(path.name) + ": matrices for each token are refused");
    expect(!refuses(rot, x), std::string(path.name) + ": 8x8 is not refused");
    params.use_ref = true;
    expect(refuses(rot, x), std::string(path.name) + ": use_ref is honoured");
}

// the nodes of site heads; o [n1, 8*n2 + 1, n3] is mixed in place, or to its own tokens from first_token on
struct mix_graph {
    ggml_context_ptr ctx = make_context();
    ggml_tensor * rot;
    ggml_tensor * o;
    ggml_tensor * cont;
    ggml_tensor * out;
    ggml_cgraph * graph;
    std::vector<float> before;

    mix_graph(int64_t n1, int64_t n2, int64_t n3, int64_t first_token = 0) {
        rot = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 8, n2);
        o   = ggml_new_tensor_4d(
            ctx.get(), GGML_TYPE_F32, n1, 8 * n2 + 1, n3 + first_token, 1); // a head too many, which stays as it is
        fill_random(rot);
        fill_random(o);
        before.assign((float *) o->data, (float *) o->data + ggml_nelements(o));
        auto groups = [&](int64_t t) {
            return ggml_view_4d(ctx.get(), o, n1, 8, n2, n3, o->nb[1], 8 * o->nb[1], o->nb[2], t * o->nb[2]);
        };
        ggml_tensor * x = groups(0);
        ggml_tensor * y = first_token == 0 ? x : groups(first_token);
        cont            = ggml_cont(ctx.get(), ggml_permute(ctx.get(), x, 1, 0, 2, 3));
        out             = ggml_mul_mat(ctx.get(), rot, cont);
        ggml_mul_mat_set_hint(out, GGML_HINT_SRC0_IS_SO8);
        out   = ggml_cpy(ctx.get(), ggml_permute(ctx.get(), out, 1, 0, 2, 3), y);
        graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, y); // not between the others
        ggml_build_forward_expand(graph, out);
    }

    void reset() {
        memcpy(o->data, before.data(), ggml_nbytes(o));
        memset(cont->data, 0xff, ggml_nbytes(cont));
    }

    bool is_cont_untouched() const {
        uint32_t bits;
        memcpy(&bits, cont->data, sizeof(bits));
        return bits == 0xffffffff;
    }

    // values that differ from the mixed ones, or were to stay as they are
    int64_t n_wrong(bool fma, int64_t first_token = 0) const {
        int64_t result = 0;
        for (int64_t t = 0; t < o->ne[2]; ++t) {
            for (int64_t h = 0; h < o->ne[1]; ++h) {
                for (int64_t d = 0; d < o->ne[0]; ++d) {
                    const float found  = ((const float *) o->data)[(t * o->ne[1] + h) * o->ne[0] + d];
                    const float * x    = before.data() + ((t - first_token) * o->ne[1] + h / 8 * 8) * o->ne[0] + d;
                    const bool mixed   = h < 8 * rot->ne[2] && t >= first_token;
                    result            += !same_bits(
                        found, mixed ? expected((const float *) rot->data + 64 * (h / 8), x, o->ne[0], h % 8, fma) :
                                       before[(t * o->ne[1] + h) * o->ne[0] + d]);
                }
            }
        }
        return result;
    }
};

static int node_index(const ggml_cgraph * graph, const ggml_tensor * node) {
    for (int i = 0; i < graph->n_nodes; ++i) {
        if (graph->nodes[i] == node) {
            return i;
        }
    }
    GGML_ABORT("no such node");
}

static void test_mix(const rotate_path & path) {
    for (int64_t n1 : {8, 24, 64, 128}) {
        for (int64_t n3 : {1, 5, 33}) {
            mix_graph mix(n1, 2, n3);
            for (int nth : {1, 2, 3, 8, 64}) {
                mix.reset();
                bool fused = true;
                for (int ith = 0; ith < nth; ++ith) {
                    ggml_compute_params params = {};
                    params.ith                 = ith;
                    params.nth                 = nth;
                    fused = path.try_fuse(mix.graph, node_index(mix.graph, mix.cont), &params) == 3 && fused;
                }
                const std::string what = std::string(path.name) + ": heads mixed, " + std::to_string(n1) + " wide, " +
                                         std::to_string(n3) + " tokens, " + std::to_string(nth) + " threads";
                expect(fused && mix.is_cont_untouched(), what + ": one pass");
                expect(mix.n_wrong(is_fma(path.simd())) == 0, what + ": values differ");
            }
        }
    }
}

static void compute(ggml_cgraph * graph, int n_threads, bool use_ref) {
    ggml_cplan plan = ggml_graph_plan(graph, n_threads, nullptr);
    std::vector<uint8_t> work(plan.work_size);
    plan.work_data = work.data();
    plan.use_ref   = use_ref;
    ggml_graph_compute(graph, &plan);
}

// rotations and fused rotations that ggml-cpu counts while a graph is computed
static std::pair<int64_t, int64_t> compute_counted(ggml_cgraph * graph, int n_threads, bool use_ref) {
    int64_t n_rotations_0, n_fused_0, n_rotations, n_fused;
    ggml_so8t_cpu_counts(&n_rotations_0, &n_fused_0);
    compute(graph, n_threads, use_ref);
    ggml_so8t_cpu_counts(&n_rotations, &n_fused);
    return {n_rotations - n_rotations_0, n_fused - n_fused_0};
}

// ggml takes the fast path where it should and only there
static void test_ggml() {
    using counts = std::pair<int64_t, int64_t>;

    const bool fma = is_fma(ggml_so8t_cpu_simd());
    for (int n_threads : {1, 2, 3}) {
        const std::string suffix = ", " + std::to_string(n_threads) + " threads";
        for (bool hint : {false, true}) {
            for (bool use_ref : {false, true}) {
                auto ctx          = make_context();
                ggml_tensor * rot = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 8, 8, 9);
                ggml_tensor * x   = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, 8, 4, 9, 33);
                fill_random(rot);
                fill_random(x);
                ggml_tensor * y = ggml_mul_mat(ctx.get(), rot, x);
                if (hint) {
                    ggml_mul_mat_set_hint(y, GGML_HINT_SRC0_IS_SO8);
                }
                ggml_cgraph * graph = ggml_new_graph(ctx.get());
                ggml_build_forward_expand(graph, y);
                const bool fast    = hint && !use_ref;
                const counts found = compute_counted(graph, n_threads, use_ref);

                int64_t n_different = 0;
                double largest      = 0;
                for (int64_t v = 0; v < 4 * 9 * 33; ++v) {
                    for (int i = 0; i < 8; ++i) {
                        const float a = ((const float *) y->data)[8 * v + i];
                        const float b = expected(
                            (const float *) rot->data + 64 * (v / 4 % 9), (const float *) x->data + 8 * v, 1, i, fma);
                        n_different += !same_bits(a, b);
                        largest      = std::fmax(largest, std::fabs(a - b));
                    }
                }
                const std::string what = std::string("ggml: MUL_MAT ") + (hint ? "with hint" : "without hint") +
                                         (use_ref ? ", use_ref" : "") + suffix;
                expect(found == counts(fast, 0), what + ": fast path or not");
                expect(n_different == 0 || !fast, what + ": " + std::to_string(n_different) + " values differ");
                expect(
                    largest < 3 * ROUNDING, what + ": rounding"); // the plain MUL_MAT may round eight products and sums
            }
        }

        mix_graph mix(64, 2, 33);
        mix.reset();
        expect(compute_counted(mix.graph, n_threads, false) == counts(1, 1), "ggml: heads mixed in one pass" + suffix);
        expect(
            mix.is_cont_untouched() && mix.n_wrong(fma) == 0, "ggml: heads mixed in one pass: values differ" + suffix);
        mix.reset();
        expect(compute_counted(mix.graph, n_threads, true) == counts(0, 0), "ggml: heads mixed with use_ref" + suffix);

        // what a node between is wanted for outside, or reads after it is overwritten, is computed node by node, with the same bits
        mix_graph wanted(64, 2, 33);
        ggml_set_output(wanted.cont);
        wanted.reset();
        expect(compute_counted(wanted.graph, n_threads, false) == counts(1, 0),
            "ggml: heads mixed, a node between is an output" + suffix);
        expect(wanted.n_wrong(fma) == 0, "ggml: heads mixed, a node between is an output: values differ" + suffix);

        mix_graph shifted(64, 2, 33, 1);
        shifted.reset();
        expect(compute_counted(shifted.graph, n_threads, false) == counts(1, 0),
            "ggml: heads mixed into memory that overlaps" + suffix);
        expect(shifted.n_wrong(fma, 1) == 0, "ggml: heads mixed into memory that overlaps: values differ" + suffix);
    }
}

int main() {
    int n_simd = 0;
    for (const auto & path : all_paths()) {
        if (!path.runs_here) {
            printf("%s: skipped, this CPU has it not\n", path.name);
            continue;
        }
        expect(strcmp(path.name, path.simd()) == 0, std::string(path.name) + ": compiled as " + path.simd());
        const int before = n_passed;
        for (const auto & c : all_layouts()) {
            test_layout(path, c);
        }
        test_refused(path);
        test_mix(path);
        printf("%s: %d passed\n", path.name, n_passed - before);
        n_simd += strcmp(path.name, "plain") != 0;
    }
    test_ggml();
    printf("plain and %d SIMD paths, ggml-cpu is %s: %d passed, %d failed\n", n_simd, ggml_so8t_cpu_simd(), n_passed,
        n_failed);
    return n_failed == 0 ? 0 : 1;
}
