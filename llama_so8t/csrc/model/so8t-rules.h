#pragma once

#include "so8t.h"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

// The rule of docs/conventions.md, "Verdicts": what the values of heads mean. The positions of an answer are aggregated.
// Then a label acts where its probability is at or above its threshold, or by argmax is the largest, at as many positions
// as the debounce says; values that are not finite refuse; heads are asked in their order until one refuses; refuse >
// escalate > allow. tests/golden/verdict_rule.json has cases that this code, the page of the server and so8t trace agree
// on.

// settings of one head
struct so8t_head_rule {
    llama_so8t_scope scope = LLAMA_SO8T_SCOPE_BOTH;
    llama_so8t_rule rule   = LLAMA_SO8T_RULE_THRESHOLD;
    bool fitted            = true;          // otherwise it does not act
    int32_t debounce       = 1;             // positions of an answer that must agree: in a row, or of a window
    std::vector<float> thresholds;          // of each label; argmax does not use them
    std::vector<llama_so8t_action> actions; // of each label

    float temperature    = 1.0f; // probabilities are link(logits / temperature)
    llama_so8t_link link = LLAMA_SO8T_LINK_SOFTMAX;

    llama_so8t_aggregation aggregation = LLAMA_SO8T_AGGREGATION_RUN;
    float ema_alpha                    = 1.0f; // weight of the newest position
    int32_t window                     = 1;    // positions, of which the rule has to hold at `debounce`

    int32_t depends_on = -1; // asked only where a label of this head acts; -1: everywhere
};

// one head in one part, as it goes on. What follows values that are not finite begins anew.
struct so8t_head_run {
    std::vector<double> values; // of each label: aggregated logits, or the largest probability
    int64_t n_values = 0;       // positions that they are of

    std::vector<bool> holds;                  // for each label: its rule, at the newest position
    std::vector<int32_t> n_above;             // and at so many positions, in a row or of the window
    std::vector<std::deque<int32_t>> held_at; // which these are in a window
    int32_t at = -1;                          // the newest position; those at which the head had no values count if
                                              // it depends on another
};

// the strongest action at a position, and what asked for it
struct so8t_found {
    llama_so8t_action action = LLAMA_SO8T_ACTION_ALLOW;
    int32_t head             = -1;
    int32_t label            = -1;    // of the head; -1: its values are not finite
    int32_t n_run            = 0;     // positions from the first that agreed up to here
    bool acts                = false; // of one head: a label that holds here has another action than allow
};

// link(logits / temperature) of the n labels of a head; false and NaN where a logit is not finite
LLAMA_API bool so8t_probabilities(
    const float * logits, size_t n, float temperature, llama_so8t_link link, float * probs);

// the label with the largest of n probabilities, the first of equal ones; -1: they are not finite
LLAMA_API int32_t so8t_largest(const float * probs, size_t n);

inline bool so8t_in_scope(llama_so8t_scope scope, bool is_prompt) {
    return scope & (is_prompt ? LLAMA_SO8T_SCOPE_PROMPT : LLAMA_SO8T_SCOPE_ANSWER);
}

// The next position of a part: probabilities of the n labels of a head, from its logits there and at the positions before
// it. False and NaN where a logit is not finite.
LLAMA_API bool so8t_aggregate(const so8t_head_rule & rule, const float * logits, so8t_head_run & run, float * probs);

// One head at a position of a part; probs: of each label, aggregated, all finite or none. A prompt has one position, and
// needs no other to agree.
LLAMA_API so8t_found so8t_judge_head(
    const so8t_head_rule & rule, bool is_prompt, int32_t position, const float * probs, so8t_head_run & run);

// the first label that has triggered at the newest position, in the order of the head; -1: none
LLAMA_API int32_t so8t_first_label(const so8t_head_rule & rule, bool is_prompt, const so8t_head_run & run);

// the newest positions of an answer that can be a part of a run that triggers; 0: no label of this head acts on answers
LLAMA_API int32_t so8t_n_needed(const so8t_head_rule & rule);

// whether one more position of an answer can be the one where a label triggers
LLAMA_API bool so8t_can_trigger(const so8t_head_rule & rule, const so8t_head_run & run);

// All heads at one position; ask(head) says what one of them found. After a refusal no other is asked. A head that depends
// on another, depends_on(head), is asked wherever a label of that one acts, also behind its refusal: it says more of it.
template <typename DependsOn, typename Ask>
so8t_found so8t_judge(int32_t n_heads, DependsOn && depends_on, Ask && ask) {
    so8t_found strongest;
    std::vector<bool> acts(n_heads);
    for (int32_t head = 0; head < n_heads; ++head) {
        const int32_t other = depends_on(head);
        if (other < 0 ? strongest.action == LLAMA_SO8T_ACTION_REFUSE : !acts[other]) {
            continue;
        }
        const so8t_found found = ask(head);
        acts[head]             = found.acts;
        if (found.action > strongest.action) {
            strongest      = found;
            strongest.head = head;
        }
    }
    return strongest;
}
