// the C++ algebra against the golden numbers: usage: test-so8t-algebra so8_golden.json

#include "so8t-algebra.h"

#include "json.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <vector>

// the golden generators are read as float32, as files store them
static constexpr double TOLERANCE = 1e-6;

static double max_difference(const so8t_matrix & a, const common_json & b) {
    double result = 0;
    for (int i = 0; i < SO8T_DIM; ++i) {
        for (int j = 0; j < SO8T_DIM; ++j) {
            result = std::fmax(result, std::fabs(a[i][j] - b.at(i).at(j).get<double>()));
        }
    }
    return result;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s so8_golden.json\n", argv[0]);
        return 1;
    }
    std::stringstream text;
    text << std::ifstream(argv[1]).rdbuf();
    const common_json golden = common_json::parse(text.str());

    int n_passed = 0;
    int n_failed = 0;
    auto expect  = [&](bool ok, const char * what, double value) {
        (ok ? n_passed : n_failed)++;
        if (!ok) {
            fprintf(stderr, "FAIL %s: %g\n", what, value);
        }
    };

    static const char * const names[] = {"R_v", "R_s_plus", "R_s_minus"};
    for (const auto & entry : golden.at("cases")) {
        std::vector<float> generator;
        for (const auto & a : entry.at("generator")) {
            generator.push_back((float) a.get<double>());
        }
        for (int t = 0; t < 3; ++t) {
            const so8t_matrix rotation = so8t_rotation(generator.data(), (so8t_representation) t);
            const double error         = max_difference(rotation, entry.at(names[t]));
            expect(error <= TOLERANCE, names[t], error);
            expect(so8t_orthogonality_error(rotation) <= 1e-12, "orthogonality", so8t_orthogonality_error(rotation));
            expect(std::fabs(so8t_determinant(rotation) - 1) <= 1e-12, "determinant", so8t_determinant(rotation));
        }
    }

    so8t_matrix reflection = {};
    for (int i = 0; i < SO8T_DIM; ++i) {
        reflection[i][i] = i == 0 ? -1 : 1;
    }
    expect(std::fabs(so8t_determinant(reflection) + 1) <= 1e-15, "determinant of a reflection",
        so8t_determinant(reflection));

    reflection[3][3] = NAN;
    expect(
        std::isnan(so8t_orthogonality_error(reflection)), "orthogonality of NaN", so8t_orthogonality_error(reflection));

    float nan[SO8T_N_GENERATORS] = {NAN};
    expect(std::isnan(so8t_rotation(nan, SO8T_VECTOR)[0][0]), "exp of NaN", 0);

    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed == 0 && n_passed > 0 ? 0 : 1;
}
