#pragma once

// 8x8 rotations of float32 vectors for the instruction set this file is compiled for, as ggml's simd-mappings.h:
// AVX-512 (F, DQ, VL), AVX2 with FMA, NEON, or plain C++ (also with SO8T_NO_SIMD, for tests).
//
// A matrix R is rot[8*i + j] = R[i][j]. Whatever the function, path or number of threads, y = R x is summed as
//   p_k = fma(R[i][k + 4], x_(k + 4), R[i][k]*x_k), k = 0..3;   y_i = (p_0 + p_1) + (p_2 + p_3)
// where plain C++ rounds the product too if the machine has no fast fma.
//
// Vectors are variables of their own and not arrays: gcc 12 leaves arrays in memory.

#include "ggml-cpu-impl.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized" // gcc 12 in its own avx512fintrin.h
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if !defined(SO8T_NO_SIMD) && defined(__AVX__) && defined(__FMA__)
#define SO8T_AVX2
#endif
#if defined(SO8T_AVX2) && defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define SO8T_AVX512
#endif
#if !defined(SO8T_NO_SIMD) && defined(__ARM_NEON) && defined(__aarch64__)
#define SO8T_NEON
#endif

namespace { // each variant of ggml-cpu has its own

constexpr int64_t SO8T_DIM = 8;

//
// vectors of 8 floats, and the widest ones
//

template <typename V>
inline V so8t_load(const float * p); // p[0], p[1], ...
template <typename V>
inline V so8t_fill(const float * p); // p[0], p[0], ...

#if defined(SO8T_AVX2)

#define SO8T_SIMD "AVX2"

struct so8t_v8 {
    __m256 v;
};

template <>
inline so8t_v8 so8t_load(const float * p) {
    return {_mm256_loadu_ps(p)};
}
template <>
inline so8t_v8 so8t_fill(const float * p) {
    return {_mm256_broadcast_ss(p)};
}

inline void so8t_store(float * p, so8t_v8 a) {
    _mm256_storeu_ps(p, a.v);
}
inline so8t_v8 so8t_add(so8t_v8 a, so8t_v8 b) {
    return {_mm256_add_ps(a.v, b.v)};
}
inline so8t_v8 so8t_mul(so8t_v8 a, so8t_v8 b) {
    return {_mm256_mul_ps(a.v, b.v)};
}
inline so8t_v8 so8t_fma(so8t_v8 a, so8t_v8 b, so8t_v8 c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}

// 4 floats at a and 4 at b
inline __m256 so8t_halves(const float * a, const float * b) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
}

#elif defined(SO8T_NEON)

#define SO8T_SIMD "NEON"

struct so8t_v8 {
    float32x4_t lo, hi;
};

template <>
inline so8t_v8 so8t_load(const float * p) {
    return {vld1q_f32(p), vld1q_f32(p + 4)};
}
template <>
inline so8t_v8 so8t_fill(const float * p) {
    return {vld1q_dup_f32(p), vld1q_dup_f32(p)};
}

inline void so8t_store(float * p, so8t_v8 a) {
    vst1q_f32(p, a.lo);
    vst1q_f32(p + 4, a.hi);
}
inline so8t_v8 so8t_add(so8t_v8 a, so8t_v8 b) {
    return {vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)};
}
inline so8t_v8 so8t_mul(so8t_v8 a, so8t_v8 b) {
    return {vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)};
}
inline so8t_v8 so8t_fma(so8t_v8 a, so8t_v8 b, so8t_v8 c) {
    return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)};
}

#else

#define SO8T_SIMD "plain"

struct so8t_v8 {
    float v[SO8T_DIM];
};

// written out where it is fast, so that the compiler has nothing left to contract as it pleases
inline float so8t_fma1(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}

template <typename F>
inline so8t_v8 so8t_each(F f) {
    so8t_v8 r;
    for (int i = 0; i < SO8T_DIM; ++i) {
        r.v[i] = f(i);
    }
    return r;
}

template <>
inline so8t_v8 so8t_load(const float * p) {
    return so8t_each([=](int i) { return p[i]; });
}
template <>
inline so8t_v8 so8t_fill(const float * p) {
    const float a = *p;
    return so8t_each([=](int) { return a; });
}

inline void so8t_store(float * p, const so8t_v8 & a) {
    memcpy(p, a.v, sizeof(a.v));
}
inline so8t_v8 so8t_add(const so8t_v8 & a, const so8t_v8 & b) {
    return so8t_each([&](int i) { return a.v[i] + b.v[i]; });
}
inline so8t_v8 so8t_mul(const so8t_v8 & a, const so8t_v8 & b) {
    return so8t_each([&](int i) { return a.v[i] * b.v[i]; });
}
inline so8t_v8 so8t_fma(const so8t_v8 & a, const so8t_v8 & b, const so8t_v8 & c) {
    return so8t_each([&](int i) { return so8t_fma1(a.v[i], b.v[i], c.v[i]); });
}

#endif

#if defined(SO8T_AVX512)

#undef SO8T_SIMD
#define SO8T_SIMD "AVX-512"

struct so8t_wide {
    __m512 v;
};

template <>
inline so8t_wide so8t_load(const float * p) {
    return {_mm512_loadu_ps(p)};
}
template <>
inline so8t_wide so8t_fill(const float * p) {
    return {_mm512_set1_ps(*p)};
}

inline void so8t_store(float * p, so8t_wide a) {
    _mm512_storeu_ps(p, a.v);
}
inline so8t_wide so8t_add(so8t_wide a, so8t_wide b) {
    return {_mm512_add_ps(a.v, b.v)};
}
inline so8t_wide so8t_mul(so8t_wide a, so8t_wide b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
inline so8t_wide so8t_fma(so8t_wide a, so8t_wide b, so8t_wide c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}

#else

using so8t_wide = so8t_v8;

#endif

// eight vectors c_j at p + j*stride
template <typename V>
struct so8t_columns {
    const V c0, c1, c2, c3, c4, c5, c6, c7;

    so8t_columns(const float * p, int64_t stride) :
        c0(so8t_load<V>(p + 0 * stride)),
        c1(so8t_load<V>(p + 1 * stride)),
        c2(so8t_load<V>(p + 2 * stride)),
        c3(so8t_load<V>(p + 3 * stride)),
        c4(so8t_load<V>(p + 4 * stride)),
        c5(so8t_load<V>(p + 5 * stride)),
        c6(so8t_load<V>(p + 6 * stride)),
        c7(so8t_load<V>(p + 7 * stride)) {}
};

// sum_j a_j*c_j
template <typename V>
inline V so8t_combine(const so8t_columns<V> & c, const float * a) {
    const V p0 = so8t_fma(c.c4, so8t_fill<V>(a + 4), so8t_mul(c.c0, so8t_fill<V>(a + 0)));
    const V p1 = so8t_fma(c.c5, so8t_fill<V>(a + 5), so8t_mul(c.c1, so8t_fill<V>(a + 1)));
    const V p2 = so8t_fma(c.c6, so8t_fill<V>(a + 6), so8t_mul(c.c2, so8t_fill<V>(a + 2)));
    const V p3 = so8t_fma(c.c7, so8t_fill<V>(a + 7), so8t_mul(c.c3, so8t_fill<V>(a + 3)));
    return so8t_add(so8t_add(p0, p1), so8t_add(p2, p3));
}

// columns[8*j + i] = R[i][j]
inline void so8t_transpose(const float * rot, float * columns) {
#if defined(SO8T_AVX2)
    for (int j = 0; j < SO8T_DIM; j += 4, rot += 4, columns += 32) {
        // a row in each half: i and i + 4; then 4x4 in each half
        const __m256 r0 = so8t_halves(rot + 0, rot + 32);
        const __m256 r1 = so8t_halves(rot + 8, rot + 40);
        const __m256 r2 = so8t_halves(rot + 16, rot + 48);
        const __m256 r3 = so8t_halves(rot + 24, rot + 56);
        const __m256 s0 = _mm256_unpacklo_ps(r0, r1);
        const __m256 s1 = _mm256_unpackhi_ps(r0, r1);
        const __m256 s2 = _mm256_unpacklo_ps(r2, r3);
        const __m256 s3 = _mm256_unpackhi_ps(r2, r3);
        _mm256_storeu_ps(columns + 0, _mm256_shuffle_ps(s0, s2, 0x44));
        _mm256_storeu_ps(columns + 8, _mm256_shuffle_ps(s0, s2, 0xee));
        _mm256_storeu_ps(columns + 16, _mm256_shuffle_ps(s1, s3, 0x44));
        _mm256_storeu_ps(columns + 24, _mm256_shuffle_ps(s1, s3, 0xee));
    }
#else
    for (int j = 0; j < SO8T_DIM; ++j) {
        for (int i = 0; i < SO8T_DIM; ++i) {
            columns[SO8T_DIM * j + i] = rot[SO8T_DIM * i + j];
        }
    }
#endif
}

//
// one matrix, one vector: R is read once and not transposed
//

inline void so8t_rotate_one(const float * rot, const float * x, float * y) {
#if defined(SO8T_AVX512)
    const __m512 xl = _mm512_broadcast_f32x4(_mm_loadu_ps(x));
    const __m512 xh = _mm512_broadcast_f32x4(_mm_loadu_ps(x + 4));
    const __m512 r0 = _mm512_loadu_ps(rot);
    const __m512 r2 = _mm512_loadu_ps(rot + 16);
    const __m512 r4 = _mm512_loadu_ps(rot + 32);
    const __m512 r6 = _mm512_loadu_ps(rot + 48);
    // a row in each quarter: 0..3 and 4..7
    const __m512 p = _mm512_fmadd_ps(
        _mm512_shuffle_f32x4(r0, r2, 0xdd), xh, _mm512_mul_ps(_mm512_shuffle_f32x4(r0, r2, 0x88), xl));
    const __m512 q = _mm512_fmadd_ps(
        _mm512_shuffle_f32x4(r4, r6, 0xdd), xh, _mm512_mul_ps(_mm512_shuffle_f32x4(r4, r6, 0x88), xl));
    const __m512 s      = _mm512_add_ps(_mm512_shuffle_ps(p, q, 0x88), _mm512_shuffle_ps(p, q, 0xdd));
    const __m512 t      = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm256_storeu_ps(y, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, t)));
#elif defined(SO8T_AVX2)
    const __m256 xl = _mm256_broadcast_ps((const __m128 *) x);
    const __m256 xh = _mm256_broadcast_ps((const __m128 *) (x + 4));
    // a row in each half: i and i + 4
    const __m256 p0 = _mm256_fmadd_ps(
        so8t_halves(rot + 4, rot + 36), xh, _mm256_mul_ps(so8t_halves(rot + 0, rot + 32), xl));
    const __m256 p1 = _mm256_fmadd_ps(
        so8t_halves(rot + 12, rot + 44), xh, _mm256_mul_ps(so8t_halves(rot + 8, rot + 40), xl));
    const __m256 p2 = _mm256_fmadd_ps(
        so8t_halves(rot + 20, rot + 52), xh, _mm256_mul_ps(so8t_halves(rot + 16, rot + 48), xl));
    const __m256 p3 = _mm256_fmadd_ps(
        so8t_halves(rot + 28, rot + 60), xh, _mm256_mul_ps(so8t_halves(rot + 24, rot + 56), xl));
    _mm256_storeu_ps(y, _mm256_hadd_ps(_mm256_hadd_ps(p0, p1), _mm256_hadd_ps(p2, p3)));
#elif defined(SO8T_NEON)
    const float32x4_t xl = vld1q_f32(x);
    const float32x4_t xh = vld1q_f32(x + 4);
    for (int i = 0; i < SO8T_DIM; i += 4, rot += 32) {
        const float32x4_t p0 = vfmaq_f32(vmulq_f32(vld1q_f32(rot + 0), xl), vld1q_f32(rot + 4), xh);
        const float32x4_t p1 = vfmaq_f32(vmulq_f32(vld1q_f32(rot + 8), xl), vld1q_f32(rot + 12), xh);
        const float32x4_t p2 = vfmaq_f32(vmulq_f32(vld1q_f32(rot + 16), xl), vld1q_f32(rot + 20), xh);
        const float32x4_t p3 = vfmaq_f32(vmulq_f32(vld1q_f32(rot + 24), xl), vld1q_f32(rot + 28), xh);
        vst1q_f32(y + i, vpaddq_f32(vpaddq_f32(p0, p1), vpaddq_f32(p2, p3)));
    }
#else
    float columns[SO8T_DIM * SO8T_DIM];
    so8t_transpose(rot, columns);
    so8t_store(y, so8t_combine(so8t_columns<so8t_v8>(columns, SO8T_DIM), x));
#endif
}

//
// one matrix, many vectors: R stays in registers, by columns
//

// vectors v = 0..n - 1 of tokens t = 0..n_t - 1 at x + v*nb_x + t*nt_x, to y + v*nb_y + t*nt_y
inline void so8t_rotate_many(const float * columns, const char * x, size_t nb_x, size_t nt_x, char * y, size_t nb_y,
    size_t nt_y, int64_t n, int64_t n_t) {
    const so8t_columns<so8t_v8> c(columns, SO8T_DIM);

    for (int64_t t = 0; t < n_t; ++t, x += nt_x, y += nt_y) {
        for (int64_t v = 0; v < n; ++v) {
            so8t_store((float *) (y + v * nb_y), so8t_combine(c, (const float *) (x + v * nb_x)));
        }
    }
}

//
// one matrix, n vectors that stand in columns: element k of all of them at x + k*nb_x, n a multiple of 8
//

template <typename V>
inline void so8t_rotate_rows_at(const float * rot, const char * x, size_t nb_x, char * y, size_t nb_y) {
    const so8t_columns<V> c(
        (const float *) x, nb_x / sizeof(float)); // all of x before the first of y: they may be the same
    for (int i = 0; i < SO8T_DIM; ++i) {
        so8t_store((float *) (y + i * nb_y), so8t_combine(c, rot + SO8T_DIM * i));
    }
}

inline void so8t_rotate_rows(const float * rot, const char * x, size_t nb_x, char * y, size_t nb_y, int64_t n) {
    constexpr int64_t n_wide = sizeof(so8t_wide) / sizeof(float);

    int64_t v = 0;
    for (; v + n_wide <= n; v += n_wide) {
        so8t_rotate_rows_at<so8t_wide>(rot, x + v * sizeof(float), nb_x, y + v * sizeof(float), nb_y);
    }
    for (; v < n; v += SO8T_DIM) {
        so8t_rotate_rows_at<so8t_v8>(rot, x + v * sizeof(float), nb_x, y + v * sizeof(float), nb_y);
    }
}

} // namespace
