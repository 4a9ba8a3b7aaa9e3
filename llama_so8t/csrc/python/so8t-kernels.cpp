#include "so8t-kernels.h"

#include "ggml.h"

#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#define QK8_0 32

struct block_q8_0 {
    ggml_fp16_t d;
    int8_t qs[QK8_0];
};

// the best instructions of the machine at run time; no fused multiply-add anywhere (see CMakeLists.txt)
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define SO8T_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define SO8T_F16C   __attribute__((target("avx,f16c")))
#include <immintrin.h>
#else
#define SO8T_CLONES
#endif

int32_t so8t_kernels_version(void) {
    return SO8T_KERNELS_VERSION;
}

static std::array<float, 256> so8t_e4m3_table(void) {
    std::array<float, 256> table;
    for (int i = 0; i < 256; ++i) {
        const int exponent    = i >> 3 & 15;
        const int mantissa    = i & 7;
        const float magnitude = exponent > 0 ? std::ldexp(8.0f + mantissa, exponent - 10) :
                                               std::ldexp((float) mantissa, -9);
        table[i]              = std::copysign((i & 0x7f) == 0x7f ? NAN : magnitude, i & 0x80 ? -1.0f : 1.0f);
    }
    return table;
}

void so8t_kernels_from_e4m3(const uint8_t * __restrict src, float * __restrict dst, int64_t n) {
    static const std::array<float, 256> table = so8t_e4m3_table();
    for (int64_t i = 0; i < n; ++i) {
        dst[i] = table[src[i]];
    }
}

SO8T_CLONES
void so8t_kernels_from_bf16(const uint16_t * __restrict src, float * __restrict dst, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = (uint32_t) src[i] << 16;
        memcpy(&dst[i], &bits, sizeof(bits));
    }
}

SO8T_CLONES
static bool so8t_all_finite(const float * src, int64_t n) {
    uint32_t found = 0;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        memcpy(&bits, &src[i], sizeof(bits));
        found |= (bits & 0x7f800000) == 0x7f800000;
    }
    return found == 0;
}

int64_t so8t_kernels_first_nonfinite(const float * src, int64_t n) {
    if (so8t_all_finite(src, n)) {
        return -1;
    }
    int64_t i = 0;
    while (std::isfinite(src[i])) {
        ++i;
    }
    return i;
}

SO8T_CLONES
static void so8t_rotate_neighbours(
    const float * x, double * y, const double * columns, int64_t n_columns, int64_t n_groups) {
    for (int64_t g = 0; g < n_groups; ++g) {
        const double * R = columns + (n_columns == 1 ? 0 : 64 * g);
        double sum[8];
        for (int k = 0; k < 8; ++k) {
            sum[k] = x[8 * g] * R[k];
        }
        for (int i = 1; i < 8; ++i) {
            const double xi = x[8 * g + i];
            for (int k = 0; k < 8; ++k) {
                sum[k] += xi * R[8 * i + k];
            }
        }
        memcpy(y + 8 * g, sum, sizeof(sum));
    }
}

SO8T_CLONES
static void so8t_rotate_strided(
    const float * x, double * y, const double * columns, int64_t n_columns, int64_t n_groups, int64_t stride) {
    for (int64_t g = 0; g < n_groups; ++g) {
        const double * R = columns + (n_columns == 1 ? 0 : 64 * g);
        const float * xg = x + 8 * stride * g;
        double * yg      = y + 8 * stride * g;
        for (int k = 0; k < 8; ++k) {
            for (int64_t h = 0; h < stride; ++h) {
                double sum = xg[h] * R[k];
                for (int i = 1; i < 8; ++i) {
                    sum += xg[i * stride + h] * R[8 * i + k];
                }
                yg[k * stride + h] = sum;
            }
        }
    }
}

SO8T_CLONES
static void so8t_rotate_rows(const double * x, float * y, const double * R, int64_t n_per_row) {
    for (int64_t c = 0; c < n_per_row; ++c) {
        for (int i = 0; i < 8; ++i) {
            double sum = R[8 * i] * x[c];
            for (int k = 1; k < 8; ++k) {
                sum += R[8 * i + k] * x[k * n_per_row + c];
            }
            y[i * n_per_row + c] = (float) sum;
        }
    }
}

SO8T_CLONES
static void so8t_narrow(const double * x, float * y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] = (float) x[i];
    }
}

SO8T_CLONES
static void so8t_widen(const float * x, double * y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] = x[i];
    }
}

void so8t_kernels_rotate(const float * src, float * dst, int64_t n_rows, int64_t n_per_row, const double * columns,
    int64_t n_columns, int64_t n_groups, int64_t stride, const double * rows) {
    const int64_t n_step = rows ? 8 : 1;
    std::vector<double> wide(n_step * n_per_row);

    for (int64_t row = 0; row < n_rows; row += n_step) {
        for (int64_t i = 0; i < n_step; ++i) {
            const float * x        = src + (row + i) * n_per_row;
            double * y             = wide.data() + i * n_per_row;
            const int64_t n_turned = columns ? 8 * stride * n_groups : 0;
            if (columns && stride == 1) {
                so8t_rotate_neighbours(x, y, columns, n_columns, n_groups);
            } else if (columns) {
                so8t_rotate_strided(x, y, columns, n_columns, n_groups, stride);
            }
            so8t_widen(x + n_turned, y + n_turned, n_per_row - n_turned);
        }
        if (rows) {
            so8t_rotate_rows(wide.data(), dst + row * n_per_row, rows + 64 * (row / 8), n_per_row);
        } else {
            so8t_narrow(wide.data(), dst + row * n_per_row, n_per_row);
        }
    }
}

// quantize_row_q8_0_ref with roundf() in a form that the compiler turns into vectors
SO8T_CLONES
static void so8t_quantize_q8_0(const float * src, block_q8_0 * dst, int64_t n_blocks) {
    for (int64_t b = 0; b < n_blocks; ++b) {
        const float * x = src + QK8_0 * b;

        uint32_t amax_bits = 0; // floats without their sign compare like integers
        for (int j = 0; j < QK8_0; ++j) {
            uint32_t bits;
            memcpy(&bits, &x[j], sizeof(bits));
            bits      &= 0x7fffffff;
            amax_bits  = bits > amax_bits ? bits : amax_bits;
        }
        float amax;
        memcpy(&amax, &amax_bits, sizeof(amax));

        const float d  = amax / 127;
        const float id = d ? 1.0f / d : 0.0f;

        dst[b].d = ggml_fp32_to_fp16(d);
        for (int j = 0; j < QK8_0; ++j) {
            const float y    = x[j] * id;
            const int32_t q  = (int32_t) y;
            const float rest = y - (float) q;                                   // exact
            dst[b].qs[j]     = (int8_t) (q + (rest >= 0.5f) - (rest <= -0.5f)); // halves away from zero
        }
    }
}

#ifdef SO8T_F16C
SO8T_F16C
static int64_t so8t_to_f16_f16c(const float * src, ggml_fp16_t * dst, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128((__m128i *) (dst + i), _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    }
    return i;
}
#endif

static void so8t_to_f16(const float * src, ggml_fp16_t * dst, int64_t n) {
    int64_t done = 0;
#ifdef SO8T_F16C
    if (__builtin_cpu_supports("f16c")) {
        done = so8t_to_f16_f16c(src, dst, n);
    }
#endif
    ggml_fp32_to_fp16_row(src + done, dst + done, n - done);
}

uint64_t so8t_kernels_quantize(
    int32_t type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row, const float * imatrix, bool check) {
    const ggml_type kind = (ggml_type) type;
    size_t size;
    if (kind == GGML_TYPE_Q8_0) {
        so8t_quantize_q8_0(src, (block_q8_0 *) dst, n_rows * n_per_row / QK8_0);
        size = n_rows * ggml_row_size(kind, n_per_row);
    } else if (kind == GGML_TYPE_F16) {
        so8t_to_f16(src, (ggml_fp16_t *) dst, n_rows * n_per_row);
        size = n_rows * ggml_row_size(kind, n_per_row);
    } else {
        size = ggml_quantize_chunk(kind, src, dst, 0, n_rows, n_per_row, imatrix);
    }
    return !check || ggml_validate_row_data(kind, dst, size) ? size : 0;
}
