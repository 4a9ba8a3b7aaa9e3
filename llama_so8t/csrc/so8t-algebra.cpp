#include "so8t-algebra.h"

#include <algorithm>
#include <cmath>

static so8t_matrix so8t_multiply(const so8t_matrix & a, const so8t_matrix & b) {
    so8t_matrix c = {};
    for (int i = 0; i < SO8T_DIM; ++i) {
        for (int k = 0; k < SO8T_DIM; ++k) {
            for (int j = 0; j < SO8T_DIM; ++j) {
                c[i][j] += a[i][k]*b[k][j];
            }
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
        const int line[3] = { 1 + n, 1 + (n + 1)%7, 1 + (n + 3)%7 };
        for (int k = 0; k < 3; ++k) {
            const int a = line[k];
            const int b = line[(k + 1)%3];
            const int c = line[(k + 2)%3];
            gamma[a][c][b] = 1;
            gamma[b][c][a] = -1;
        }
    }
    return gamma;
}

// rho_v(A) = A, rho_s+(A) = 1/2 sum a_ij G_i G_j^T, rho_s-(A) = 1/2 sum a_ij G_i^T G_j
static so8t_matrix so8t_represent(const float * generator, so8t_representation representation) {
    static const so8t_gamma gamma = so8t_make_gamma();

    so8t_matrix result = {};
    for (int i = 0; i < SO8T_DIM; ++i) {
        for (int j = i + 1; j < SO8T_DIM; ++j) {
            const double a = *generator++;
            if (representation == SO8T_VECTOR) {
                result[i][j] += a;
                result[j][i] -= a;
                continue;
            }
            const bool plus = representation == SO8T_SPINOR_PLUS;
            for (int r = 0; r < SO8T_DIM; ++r) {
                for (int c = 0; c < SO8T_DIM; ++c) {
                    double sum = 0;
                    for (int k = 0; k < SO8T_DIM; ++k) {
                        sum += plus ? gamma[i][r][k]*gamma[j][c][k] : gamma[i][k][r]*gamma[j][k][c];
                    }
                    result[r][c] += 0.5*a*sum;
                }
            }
        }
    }
    return result;
}

// scaling and squaring with a Taylor series: at norm 1/4 the 14th term is below 1e-19
static so8t_matrix so8t_exp(so8t_matrix a) {
    constexpr int n_terms = 14;

    double norm = 0;
    for (const auto & row : a) {
        double sum = 0;
        for (double value : row) {
            sum += std::fabs(value);
        }
        norm = std::max(norm, sum);
    }
    if (!std::isfinite(norm)) {
        a[0][0] = NAN;
        return a;
    }
    const int n_squarings = norm > 0.25 ? (int) std::ceil(std::log2(norm/0.25)) : 0;
    for (auto & row : a) {
        for (double & value : row) {
            value = std::ldexp(value, -n_squarings);
        }
    }

    so8t_matrix sum  = {};
    so8t_matrix term = {};
    for (int i = 0; i < SO8T_DIM; ++i) {
        sum[i][i]  = 1;
        term[i][i] = 1;
    }
    for (int n = 1; n <= n_terms; ++n) {
        term = so8t_multiply(term, a);
        for (int i = 0; i < SO8T_DIM; ++i) {
            for (int j = 0; j < SO8T_DIM; ++j) {
                term[i][j] /= n;
                sum[i][j]  += term[i][j];
            }
        }
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
                sum += rotation[k][i]*rotation[k][j];
            }
            error = so8t_max(error, std::fabs(sum));
        }
    }
    return error;
}

double so8t_determinant(const so8t_matrix & rotation) {
    so8t_matrix m   = rotation;
    double      det = 1;
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
            const double f = m[r][c]/m[c][c];
            for (int k = c; k < SO8T_DIM; ++k) {
                m[r][k] -= f*m[c][k];
            }
        }
    }
    return det;
}
