#include "llama-so8t-check.h"

#include "llama-so8t-heads.h"
#include "llama-so8t.h"
#include "so8t-algebra.h"

#include "llama-impl.h"

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cmath>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <unordered_set>

static constexpr double SO8T_TOLERANCE = 1e-4; // spec: largest error of R^T R, of det and against exp(generator)

// A rotation this close to exp of its generator, which is orthogonal, needs no check of its own. With R = E + D,
// |D| <= d in every entry: |R^T R - I| <= 2 sqrt(8) d + 8 d^2 and |det R - 1| <= exp(8 sqrt(8) d) - 1 < 1e-4.
static constexpr double SO8T_CLOSE = 4e-6;

static constexpr unsigned SO8T_MAX_THREADS = 8;

// rotations of one tensor against their generators
struct so8t_check_job {
    so8t_check_job(
        const ggml_tensor * rotation, so8t_generator generator, const std::vector<int32_t> & representations);
    void run(std::mutex & reading) const;

    const ggml_tensor * rotation;
    so8t_generator generator;
    std::vector<int32_t> representations; // one per matrix, or empty for the vector representation
};

static std::vector<float> so8t_read(const ggml_tensor * tensor) {
    std::vector<float> data(ggml_nelements(tensor));
    ggml_backend_tensor_get(tensor, data.data(), 0, ggml_nbytes(tensor));
    return data;
}

static bool so8t_is_zero(const ggml_tensor * tensor) {
    const auto values = so8t_read(tensor);
    return std::all_of(values.begin(), values.end(), [](float value) { return value == 0.0f; });
}

so8t_check_job::so8t_check_job(
    const ggml_tensor * rotation, so8t_generator generator, const std::vector<int32_t> & representations) :
    rotation(rotation),
    generator(generator),
    representations(representations) {
    const int64_t n     = rotation->ne[2];
    const int64_t n_gen = generator.n;
    if (n_gen == 0 || (n_gen != 1 && n_gen != n) || (!representations.empty() && n_gen != 1)) {
        throw std::runtime_error(format("so8t: tensor '%s' has %" PRId64 " rotations and %" PRId64
                                        " generators, expected its generators in the file",
            rotation->name, n, n_gen));
    }
}

void so8t_check_job::run(std::mutex & reading) const {
    std::vector<float> matrices;
    {
        std::lock_guard<std::mutex> lock(reading); // not every backend can be read from several threads
        matrices = so8t_read(rotation);
    }
    const int64_t n = rotation->ne[2];

    so8t_matrix target;
    so8t_matrix by_representation[3];
    for (int t = 0; t < 3 && !representations.empty(); ++t) {
        by_representation[t] = so8t_rotation(generator.data, (so8t_representation) t);
    }
    for (int64_t b = 0; b < n; ++b) {
        if (!representations.empty()) {
            target = by_representation[representations[b]];
        } else if (b < generator.n) {
            target = so8t_rotation(
                generator.data + b * SO8T_N_GENERATORS, SO8T_VECTOR); // b = 0 for all, or each its own
        }
        so8t_matrix m;
        double difference = 0;
        for (int i = 0; i < SO8T_DIM; ++i) {
            for (int j = 0; j < SO8T_DIM; ++j) {
                m[i][j]    = matrices[(b * SO8T_DIM + i) * SO8T_DIM + j];
                difference = so8t_max(difference, std::fabs(m[i][j] - target[i][j]));
            }
        }
        if (difference <= SO8T_CLOSE) {
            continue;
        }
        const double orthogonality = so8t_orthogonality_error(m);
        const double determinant   = so8t_determinant(m);
        // written so that NaN fails
        if (!(orthogonality <= SO8T_TOLERANCE && std::fabs(determinant - 1) <= SO8T_TOLERANCE)) {
            throw std::runtime_error(
                format("so8t: tensor '%s', rotation %" PRId64 " is not in SO(8): |R^T R - I| = %.3g, det = %.6f",
                    rotation->name, b, orthogonality, determinant));
        }
        if (!(difference <= SO8T_TOLERANCE)) {
            throw std::runtime_error(
                format("so8t: tensor '%s', rotation %" PRId64 " differs from exp of its generator by %.3g",
                    rotation->name, b, difference));
        }
    }
}

static void so8t_check_rotations(const llama_model_so8t & so8t) {
    std::vector<so8t_check_job> jobs;
    for (const auto & layer : so8t.so8t_layers) {
        for (int r = 0; r < SO8T_ROTATION_COUNT; ++r) {
            const auto & row = so8t_rotation_rows[r];
            if (layer.rotations[r]) {
                jobs.emplace_back(layer.rotations[r], so8t_get_generator(layer.generators, row.generator),
                    so8t.representations(row.per));
            }
        }
    }
    // 4B with a rotation per block has 34560 of them
    std::vector<std::exception_ptr> errors(jobs.size());
    std::atomic<size_t> next(0);
    std::mutex reading;
    auto work = [&]() {
        for (size_t i = next++; i < jobs.size(); i = next++) {
            try {
                jobs[i].run(reading);
            } catch (...) {
                errors[i] = std::current_exception();
            }
        }
    };
    std::vector<std::thread> threads;
    for (unsigned n = 1; n < std::min(std::thread::hardware_concurrency(), SO8T_MAX_THREADS); ++n) {
        try {
            threads.emplace_back(work);
        } catch (const std::system_error &) {
            break; // this one does the rest
        }
    }
    work();
    for (auto & thread : threads) {
        thread.join();
    }
    for (const auto & error : errors) {
        if (error) {
            std::rethrow_exception(error); // the first in the order of the file
        }
    }
}

static void so8t_check_finite(const ggml_tensor * tensor) {
    if (!tensor) {
        return;
    }
    const auto values = so8t_read(tensor);
    const auto bad = std::find_if_not(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
    if (bad != values.end()) {
        throw std::runtime_error(format("so8t: tensor '%s' has %f at %td, expected finite numbers", tensor->name, *bad,
            std::distance(values.begin(), bad)));
    }
}

void so8t_finish_heads(so8t_heads & heads, size_t first_stem, size_t first_head) {
    for (size_t i = first_stem; i < heads.stems.size(); ++i) {
        for (const ggml_tensor * tensor : heads.stems[i].tensors()) {
            so8t_check_finite(tensor);
        }
    }
    std::string names;
    int n_unfitted = 0;
    for (size_t i = first_head; i < heads.heads.size(); ++i) {
        auto & head = heads.heads[i];
        so8t_check_finite(head.weight);
        so8t_check_finite(head.bias);
        head.fitted = !so8t_is_zero(head.weight);
        if (!head.fitted) {
            names += (n_unfitted++ ? ", " : "") + head.name;
        }
    }
    if (n_unfitted == 1) {
        LLAMA_LOG_WARN("so8t: head %s has weights of zeros: it was never fitted and does not act\n", names.c_str());
    } else if (n_unfitted > 1) {
        LLAMA_LOG_WARN("so8t: heads %s have weights of zeros: they were never fitted and do not act\n", names.c_str());
    }
}

void so8t_finish_load(llama_model & model) {
    if (model.so8t_heads) {
        auto heads = std::make_shared<so8t_heads>(*model.so8t_heads);
        so8t_finish_heads(*heads, 0, 0);
        model.so8t_heads = heads;
    }
    if (model.arch != LLM_ARCH_SO8T) {
        return;
    }
    auto & so8t = static_cast<llama_model_so8t &>(model);
    for (auto & layer : so8t.so8t_layers) {
        so8t_read_generators(layer.generators);
    }
    so8t_check_rotations(so8t);

    // llama.cpp sizes a graph by tensors_by_name; generators are never in a graph, so they are dropped
    std::unordered_set<const ggml_tensor *> generators = {so8t.out_gen};
    for (const auto & layer : so8t.so8t_layers) {
        generators.insert(layer.generators.tensors.begin(), layer.generators.tensors.end());
    }
    auto & named = model.tensors_by_name;
    named.erase(std::remove_if(
                    named.begin(), named.end(), [&](const auto & entry) { return generators.count(entry.second) > 0; }),
        named.end());
}
