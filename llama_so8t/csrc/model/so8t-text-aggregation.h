#pragma once

#include "so8t.h"

#include <cstddef>
#include <vector>

// How the values of a head over a text become one probability of each label (docs/format.md, "Aggregation").
struct so8t_text_aggregation {
    llama_so8t_prompt_aggregation kind;
    float ema_alpha; // of ema
    float temperature;
    llama_so8t_link link;
};

// values: [n_tokens][n_labels]; probs: n_labels. False and NaN where there is no token or a value is not finite. Not for
// LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN, which is read at one position.
bool so8t_aggregate_text(
    const so8t_text_aggregation & how, const std::vector<float> & values, size_t n_labels, float * probs);
