#pragma once

#include <array>
#include <cstdint>

// so(8) in double precision, column vectors y = R x; the conventions are those of docs/conventions.md

constexpr int SO8T_DIM          = 8;
constexpr int SO8T_N_GENERATORS = 28;

enum so8t_representation {
    SO8T_VECTOR       = 0,
    SO8T_SPINOR_PLUS  = 1,
    SO8T_SPINOR_MINUS = 2,
};

using so8t_matrix = std::array<std::array<double, SO8T_DIM>, SO8T_DIM>; // [row][column]

// exp(rho_t(A)); generator: the 28 coefficients a_ij, i < j, in lexicographic order
so8t_matrix so8t_rotation(const float * generator, so8t_representation representation);

// largest absolute entry of R^T R - I
double so8t_orthogonality_error(const so8t_matrix & rotation);

// the larger of two values, NaN if one of them is
double so8t_max(double a, double b);

// determinant by elimination with partial pivoting
double so8t_determinant(const so8t_matrix & rotation);
