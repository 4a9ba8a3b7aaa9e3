#include "so8t-rules.h"

#include <algorithm>
#include <cmath>
#include <limits>

bool so8t_probabilities(const float * logits, size_t n, float temperature, llama_so8t_link link, float * probs) {
    std::fill_n(probs, n, std::numeric_limits<float>::quiet_NaN());
    if (!std::all_of(logits, logits + n, [](float v) { return std::isfinite(v); })) {
        return false;
    }
    if (link == LLAMA_SO8T_LINK_SIGMOID) {
        std::transform(logits, logits + n, probs,
            [&](float v) { return (float) (1.0 / (1.0 + std::exp(-v / (double) temperature))); });
        return true;
    }
    const float max = *std::max_element(logits, logits + n);
    double sum      = 0;
    for (size_t i = 0; i < n; ++i) {
        probs[i]  = std::exp((logits[i] - max) / temperature);
        sum      += probs[i];
    }
    for (size_t i = 0; i < n; ++i) {
        probs[i] /= sum;
    }
    return true;
}

int32_t so8t_largest(const float * probs, size_t n) {
    return std::isfinite(probs[0]) ? std::max_element(probs, probs + n) - probs : -1;
}

static bool so8t_triggers(
    const so8t_head_rule & rule, bool is_prompt, const std::vector<int32_t> & n_above, size_t label) {
    return rule.actions[label] != LLAMA_SO8T_ACTION_ALLOW && n_above[label] >= (is_prompt ? 1 : rule.debounce);
}

so8t_found so8t_judge_head(
    const so8t_head_rule & rule, bool is_prompt, const float * probs, std::vector<int32_t> & n_above) {
    const size_t n_labels = rule.actions.size();
    n_above.resize(n_labels, 0);

    so8t_found found;
    if (!rule.fitted) {
        return found;
    }
    const int32_t largest = so8t_largest(probs, n_labels);
    if (largest < 0) { // fail closed; the next finite position begins a new run
        n_above.assign(n_labels, 0);
        found.action = LLAMA_SO8T_ACTION_REFUSE;
        found.n_run  = 1;
        return found;
    }
    for (size_t i = 0; i < n_labels; ++i) {
        const bool holds = rule.rule == LLAMA_SO8T_RULE_ARGMAX ? (int32_t) i == largest :
                                                                 probs[i] >= rule.thresholds[i];
        n_above[i]       = holds ? n_above[i] + 1 : 0;
        if (so8t_triggers(rule, is_prompt, n_above, i) && rule.actions[i] > found.action) {
            found.action = rule.actions[i];
            found.label  = i;
            found.n_run  = is_prompt ? 1 : rule.debounce;
        }
    }
    return found;
}

int32_t so8t_first_label(const so8t_head_rule & rule, bool is_prompt, const std::vector<int32_t> & n_above) {
    for (size_t i = 0; i < n_above.size(); ++i) {
        if (so8t_triggers(rule, is_prompt, n_above, i)) {
            return i;
        }
    }
    return -1;
}

int32_t so8t_n_needed(const so8t_head_rule & rule) {
    const bool acts = rule.fitted && so8t_in_scope(rule.scope, false) &&
                      std::any_of(rule.actions.begin(), rule.actions.end(),
                          [](llama_so8t_action action) { return action != LLAMA_SO8T_ACTION_ALLOW; });
    return acts ? rule.debounce : 0;
}

bool so8t_can_trigger(const so8t_head_rule & rule, const std::vector<int32_t> & n_above) {
    for (size_t i = 0; i < rule.actions.size() && rule.fitted && so8t_in_scope(rule.scope, false); ++i) {
        const int32_t n_run = i < n_above.size() ? n_above[i] : 0;
        if (rule.actions[i] != LLAMA_SO8T_ACTION_ALLOW && n_run + 1 >= rule.debounce) {
            return true;
        }
    }
    return false;
}
