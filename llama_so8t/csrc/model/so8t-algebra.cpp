#include "so8t-algebra.h"

#include <algorithm>
#include <cmath>

// the sum is written out: compilers make vectors of the j then, which halves the time
static so8t_matrix so8t_multiply(const so8t_matrix & a, const so8t_matrix & b) {
    static_assert(SO8T_DIM == 8, "the sum has 8 terms");
    so8t_matrix c;
    for (int i = 0; i < SO8T_DIM; ++i) {
        for (int j = 0; j < SO8T_DIM; ++j) {
            c[i][j] = a[i][0] * b[0][j] + a[i][1] * b[1][j] + a[i][2] * b[2][j] + a[i][3] * b[3][j] +
                      a[i][4] * b[4][j] + a[i][5] * b[5][j] + a[i][6] * b[6][j] + a[i][7] * b[7][j];
        }
    }
    return c;
}

using so8t_gamma = std::array<so8t_matrix, SO8T_DIM>;

// left multiplication by the octonion units: gamma[a][c][b] is the coefficient of e_c in e_a e_b,
// with the Fano rule e_i e_(i+1) = e_(i+3), indices 1..7 mod 7
static so8t_gamma so8t_make_gamma() {
    so8t_gamma gamma = {};
    for (int a = 0; a < SO8T_DIM; ++a) {
        gamma[0][a][a] = 1;
        gamma[a][a][0] = 1;
        if (a > 0) {
            gamma[a][0][a] = -1;
        }
    }
    for (int n = 0; n < 7; ++n) {
        const int line[3] = {1 + n, 1 + (n + 1) % 7, 1 + (n + 3) % 7};
        for (int k = 0; k < 3; ++k) {
            const int a    = line[k];
            const int b    = line[(k + 1) % 3];
            const int c    = line[(k + 2) % 3];
            gamma[a][c][b] = 1;
            gamma[b][c][a] = -1;
        }
    }
    return gamma;
}

using so8t_basis = std::array<so8t_matrix, SO8T_N_GENERATORS>;

// images of the basis e_ij, i < j, of so(8): rho_s+(e_ij) = 1/2 G_i G_j^T, rho_s-(e_ij) = 1/2 G_i^T G_j
static so8t_basis so8t_make_spinor_basis(bool plus) {
    const so8t_gamma gamma = so8t_make_gamma();

    so8t_basis basis = {};
    int n            = 0;
    for (int i = 0; i < SO8T_DIM; ++i) {
        for (int j = i + 1; j < SO8T_DIM; ++j, ++n) {
            for (int r = 0; r < SO8T_DIM; ++r) {
                for (int c = 0; c < SO8T_DIM; ++c) {
                    for (int k = 0; k < SO8T_DIM; ++k) {
                        basis[n][r][c] += 0.5 *
                                          (plus ? gamma[i][r][k] * gamma[j][c][k] : gamma[i][k][r] * gamma[j][k][c]);
                    }
                }
            }
        }
    }
    return basis;
}

// rho_t(A) = sum a_ij rho_t(e_ij), rho_v(A) = A
static so8t_matrix so8t_represent(const float * generator, so8t_representation representation) {
    static const so8t_basis spinor_plus  = so8t_make_spinor_basis(true);
    static const so8t_basis spinor_minus = so8t_make_spinor_basis(false);

    so8t_matrix result = {};
    if (representation == SO8T_VECTOR) {
        for (int i = 0; i < SO8T_DIM; ++i) {
            for (int j = i + 1; j < SO8T_DIM; ++j) {
                result[i][j] = *generator++;
                result[j][i] = -result[i][j];
            }
        }
        return result;
    }
    const so8t_basis & basis = representation == SO8T_SPINOR_PLUS ? spinor_plus : spinor_minus;
    for (int n = 0; n < SO8T_N_GENERATORS; ++n) {
        for (int i = 0; i < SO8T_DIM; ++i) {
            for (int j = 0; j < SO8T_DIM; ++j) {
                result[i][j] += generator[n] * basis[n][i][j];
            }
        }
    }
    return result;
}

// a + s*b
static so8t_matrix so8t_add(const so8t_matrix & a, double s, const so8t_matrix & b) {
    so8t_matrix c;
    for (int i = 0; i < SO8T_DIM; ++i) {
        for (int j = 0; j < SO8T_DIM; ++j) {
            c[i][j] = a[i][j] + s * b[i][j];
        }
    }
    return c;
}

// 1/n!
static double so8t_coefficient(int n) {
    double result = 1;
    for (; n > 1; --n) {
        result /= n;
    }
    return result;
}

// terms n, ..., n + 3 of the series of exp, without the common factor a^n
static so8t_matrix so8t_four_terms(
    int n, const so8t_matrix & one, const so8t_matrix & a, const so8t_matrix & a2, const so8t_matrix & a3) {
    const double c0 = so8t_coefficient(n);
    const double c1 = c0 / (n + 1);
    const double c2 = c1 / (n + 2);
    const double c3 = c2 / (n + 3);

    so8t_matrix c;
    for (int i = 0; i < SO8T_DIM; ++i) {
        for (int j = 0; j < SO8T_DIM; ++j) {
            c[i][j] = c0 * one[i][j] + c1 * a[i][j] + c2 * a2[i][j] + c3 * a3[i][j];
        }
    }
    return c;
}

// Scaling and squaring with the Taylor polynomial of degree 16: at norm 1 what is left is below 3e-15.
// By Paterson and Stockmeyer (1973, doi:10.1137/0202007) it takes 6 products: a^2, a^3, a^4, and three of Horner's
// rule in a^4. Called for every block of every layer when a model is loaded.
static so8t_matrix so8t_exp(so8t_matrix a) {
    constexpr double max_norm = 1;

    double norm = 0;
    for (const auto & row : a) {
        double sum = 0;
        for (double value : row) {
            sum += std::fabs(value);
        }
        norm = so8t_max(norm, sum);
    }
    if (!std::isfinite(norm)) {
        a[0][0] = NAN;
        return a;
    }
    const int n_squarings = norm > max_norm ? (int) std::ceil(std::log2(norm / max_norm)) : 0;
    const double scale    = std::ldexp(1.0, -n_squarings);
    for (auto & row : a) {
        for (double & value : row) {
            value *= scale;
        }
    }
    so8t_matrix one = {};
    for (int i = 0; i < SO8T_DIM; ++i) {
        one[i][i] = 1;
    }
    const so8t_matrix a2 = so8t_multiply(a, a);
    const so8t_matrix a3 = so8t_multiply(a2, a);
    const so8t_matrix a4 = so8t_multiply(a2, a2);

    // sum of a^n/n!, n = 0 to 16
    so8t_matrix sum = so8t_add(so8t_four_terms(12, one, a, a2, a3), so8t_coefficient(16), a4);
    for (int n = 8; n >= 0; n -= 4) {
        sum = so8t_add(so8t_four_terms(n, one, a, a2, a3), 1, so8t_multiply(sum, a4));
    }
    for (int n = 0; n < n_squarings; ++n) {
        sum = so8t_multiply(sum, sum);
    }
    return sum;
}

so8t_matrix so8t_rotation(const float * generator, so8t_representation representation) {
    return so8t_exp(so8t_represent(generator, representation));
}

double so8t_max(double a, double b) {
    return a >= b || std::isnan(a) ? a : b;
}

double so8t_orthogonality_error(const so8t_matrix & rotation) {
    double error = 0;
    for (int i = 0; i < SO8T_DIM; ++i) {
        for (int j = 0; j < SO8T_DIM; ++j) {
            double sum = i == j ? -1 : 0;
            for (int k = 0; k < SO8T_DIM; ++k) {
                sum += rotation[k][i] * rotation[k][j];
            }
            error = so8t_max(error, std::fabs(sum));
        }
    }
    return error;
}

double so8t_determinant(const so8t_matrix & rotation) {
    so8t_matrix m = rotation;
    double det    = 1;
    for (int c = 0; c < SO8T_DIM; ++c) {
        int pivot = c;
        for (int r = c + 1; r < SO8T_DIM; ++r) {
            if (std::fabs(m[r][c]) > std::fabs(m[pivot][c])) {
                pivot = r;
            }
        }
        if (pivot != c) {
            std::swap(m[pivot], m[c]);
            det = -det;
        }
        det *= m[c][c];
        if (m[c][c] == 0) {
            return 0;
        }
        for (int r = c + 1; r < SO8T_DIM; ++r) {
            const double f = m[r][c] / m[c][c];
            for (int k = c; k < SO8T_DIM; ++k) {
                m[r][k] -= f * m[c][k];
            }
        }
    }
    return det;
}
