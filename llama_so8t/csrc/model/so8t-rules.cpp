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

//
// aggregation
//

// aggregated logits of a head with the newest ones
static void so8t_add_logits(const so8t_head_rule & rule, const float * logits, so8t_head_run & run) {
    const bool is_ema = rule.aggregation == LLAMA_SO8T_AGGREGATION_EMA;
    run.n_values++;
    const double weight = run.n_values == 1 ? 1.0 : is_ema ? (double) rule.ema_alpha : 1.0 / (double) run.n_values;
    for (size_t i = 0; i < run.values.size(); ++i) {
        run.values[i] += weight * (logits[i] - run.values[i]);
    }
}

bool so8t_aggregate(const so8t_head_rule & rule, const float * logits, so8t_head_run & run, float * probs) {
    const size_t n_labels = rule.actions.size();
    if (!so8t_probabilities(logits, n_labels, rule.temperature, rule.link, probs)) {
        run.values.clear(); // no later value is of these
        run.n_values = 0;
        return false;
    }
    run.values.resize(n_labels, 0.0);
    switch (rule.aggregation) {
        case LLAMA_SO8T_AGGREGATION_RUN:
        case LLAMA_SO8T_AGGREGATION_WINDOW: return true;
        case LLAMA_SO8T_AGGREGATION_MAX:
            for (size_t i = 0; i < n_labels; ++i) {
                run.values[i] = std::max(run.values[i], (double) probs[i]);
                probs[i]      = (float) run.values[i];
            }
            return true;
        case LLAMA_SO8T_AGGREGATION_EMA:
        case LLAMA_SO8T_AGGREGATION_MEAN: break;
    }
    so8t_add_logits(rule, logits, run);
    const std::vector<float> values(run.values.begin(), run.values.end());
    return so8t_probabilities(values.data(), n_labels, rule.temperature, rule.link, probs);
}

//
// one head
//

static bool so8t_triggers(const so8t_head_rule & rule, bool is_prompt, const so8t_head_run & run, size_t label) {
    return rule.actions[label] != LLAMA_SO8T_ACTION_ALLOW && run.n_above[label] >= (is_prompt ? 1 : rule.debounce);
}

static void so8t_forget(so8t_head_run & run, size_t n_labels) {
    run.holds.assign(n_labels, false);
    run.n_above.assign(n_labels, 0);
    run.held_at.assign(n_labels, {});
}

// whether the label says at this position that the head acts, for those that depend on it
static bool so8t_says(const so8t_head_rule & rule, const so8t_head_run & run, size_t label, int32_t largest) {
    const bool is_one = rule.rule == LLAMA_SO8T_RULE_ARGMAX || rule.link == LLAMA_SO8T_LINK_SOFTMAX;
    return rule.actions[label] != LLAMA_SO8T_ACTION_ALLOW &&
           (is_one ? (int32_t) label == largest : (bool) run.holds[label]);
}

// counts a position of one label
static void so8t_count(const so8t_head_rule & rule, so8t_head_run & run, size_t label, bool holds) {
    run.holds[label] = holds;
    if (rule.aggregation != LLAMA_SO8T_AGGREGATION_WINDOW) {
        run.n_above[label] = holds ? run.n_above[label] + 1 : 0;
        return;
    }
    auto & held_at = run.held_at[label];
    if (holds) {
        held_at.push_back(run.at);
    }
    while (!held_at.empty() && held_at.front() <= run.at - rule.window) {
        held_at.pop_front();
    }
    run.n_above[label] = held_at.size();
}

// positions from the first that agreed up to the newest
static int32_t so8t_n_run(const so8t_head_rule & rule, bool is_prompt, const so8t_head_run & run, size_t label) {
    return is_prompt                                         ? 1 :
           rule.aggregation == LLAMA_SO8T_AGGREGATION_WINDOW ? run.at - run.held_at[label].front() + 1 :
                                                               rule.debounce;
}

so8t_found so8t_judge_head(
    const so8t_head_rule & rule, bool is_prompt, int32_t position, const float * probs, so8t_head_run & run) {
    const size_t n_labels = rule.actions.size();
    const int32_t at      = rule.depends_on < 0 ? run.at + 1 : position;
    const bool is_next    = at == run.at + 1;
    run.at                = at;

    so8t_found found;
    if (run.n_above.empty() || (!is_next && rule.aggregation != LLAMA_SO8T_AGGREGATION_WINDOW)) {
        so8t_forget(run, n_labels);
    }
    if (!rule.fitted) {
        return found;
    }
    const int32_t largest = so8t_largest(probs, n_labels);
    if (largest < 0) { // fail closed; the next finite position begins a new run
        so8t_forget(run, n_labels);
        found.action = LLAMA_SO8T_ACTION_REFUSE;
        found.n_run  = 1;
        return found;
    }
    for (size_t i = 0; i < n_labels; ++i) {
        const bool holds = rule.rule == LLAMA_SO8T_RULE_ARGMAX ? (int32_t) i == largest :
                                                                 probs[i] >= rule.thresholds[i];
        so8t_count(rule, run, i, holds);
        found.acts = found.acts || so8t_says(rule, run, i, largest);
        if (so8t_triggers(rule, is_prompt, run, i) && rule.actions[i] > found.action) {
            found.action = rule.actions[i];
            found.label  = i;
            found.n_run  = so8t_n_run(rule, is_prompt, run, i);
        }
    }
    return found;
}

int32_t so8t_first_label(const so8t_head_rule & rule, bool is_prompt, const so8t_head_run & run) {
    for (size_t i = 0; i < run.n_above.size(); ++i) {
        if (so8t_triggers(rule, is_prompt, run, i)) {
            return i;
        }
    }
    return -1;
}

//
// what comes
//

int32_t so8t_n_needed(const so8t_head_rule & rule) {
    const bool acts = rule.fitted && so8t_in_scope(rule.scope, false) &&
                      std::any_of(rule.actions.begin(), rule.actions.end(),
                          [](llama_so8t_action action) { return action != LLAMA_SO8T_ACTION_ALLOW; });
    return !acts                                                                  ? 0 :
           rule.aggregation == LLAMA_SO8T_AGGREGATION_WINDOW && rule.debounce > 1 ? rule.window :
                                                                                    rule.debounce;
}

// positions that agree already, if the next one agrees as well
static int32_t so8t_n_before(const so8t_head_rule & rule, const so8t_head_run & run, size_t label) {
    if (label >= run.n_above.size()) {
        return 0;
    }
    if (rule.aggregation != LLAMA_SO8T_AGGREGATION_WINDOW) {
        return run.n_above[label];
    }
    const auto & held_at = run.held_at[label];
    return std::count_if(
        held_at.begin(), held_at.end(), [&](int32_t position) { return position > run.at + 1 - rule.window; });
}

bool so8t_can_trigger(const so8t_head_rule & rule, const so8t_head_run & run) {
    for (size_t i = 0; i < rule.actions.size() && rule.fitted && so8t_in_scope(rule.scope, false); ++i) {
        if (rule.actions[i] != LLAMA_SO8T_ACTION_ALLOW && so8t_n_before(rule, run, i) + 1 >= rule.debounce) {
            return true;
        }
    }
    return false;
}
