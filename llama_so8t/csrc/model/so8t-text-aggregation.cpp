#include "so8t-text-aggregation.h"

#include "so8t-rules.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <limits>

// the largest probability of each label over the means of each n_window consecutive tokens
static void so8t_max_of_windows(const so8t_text_aggregation & how, const std::vector<float> & values, size_t n_labels,
    size_t n_window, float * probs) {
    const size_t n_tokens = values.size() / n_labels;
    n_window              = std::min(n_window, n_tokens);
    std::fill_n(probs, n_labels, 0.0f);

    std::vector<float> mean(n_labels);
    std::vector<float> p(n_labels);
    for (size_t first = 0; first + n_window <= n_tokens; ++first) {
        for (size_t i = 0; i < n_labels; ++i) {
            double sum = 0; // anew for each window, so that the same window has the same mean wherever it stands
            for (size_t t = first; t < first + n_window; ++t) {
                sum += values[t * n_labels + i];
            }
            mean[i] = sum / n_window;
        }
        so8t_probabilities(mean.data(), n_labels, how.temperature, how.link, p.data());
        std::transform(p.begin(), p.end(), probs, probs, [](float a, float b) { return std::max(a, b); });
    }
}

static void so8t_ema(
    const so8t_text_aggregation & how, const std::vector<float> & values, size_t n_labels, float * probs) {
    const size_t n_tokens = values.size() / n_labels;
    std::vector<float> last(n_labels);
    for (size_t i = 0; i < n_labels; ++i) {
        double ema = values[i];
        for (size_t t = 1; t < n_tokens; ++t) {
            ema += how.ema_alpha * (values[t * n_labels + i] - ema);
        }
        last[i] = ema;
    }
    so8t_probabilities(last.data(), n_labels, how.temperature, how.link, probs);
}

bool so8t_aggregate_text(
    const so8t_text_aggregation & how, const std::vector<float> & values, size_t n_labels, float * probs) {
    std::fill_n(probs, n_labels, std::numeric_limits<float>::quiet_NaN());
    if (values.empty() || !std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
        return false;
    }
    switch (how.kind) {
        case LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN: GGML_ABORT("so8t: one token is no text");
        case LLAMA_SO8T_PROMPT_AGGREGATION_MEAN:
            so8t_max_of_windows(how, values, n_labels, values.size() / n_labels, probs);
            break;
        case LLAMA_SO8T_PROMPT_AGGREGATION_EMA:      so8t_ema(how, values, n_labels, probs); break;
        case LLAMA_SO8T_PROMPT_AGGREGATION_MAX:      so8t_max_of_windows(how, values, n_labels, 1, probs); break;
        case LLAMA_SO8T_PROMPT_AGGREGATION_WINDOW8:  so8t_max_of_windows(how, values, n_labels, 8, probs); break;
        case LLAMA_SO8T_PROMPT_AGGREGATION_WINDOW16: so8t_max_of_windows(how, values, n_labels, 16, probs); break;
    }
    return true;
}
