#pragma once

#include "so8t.h"

#include <cstddef>
#include <cstdint>
#include <vector>

// The rule of docs/conventions.md, "Verdicts": what the probabilities of heads mean. A label acts where its probability
// is at or above its threshold, or by argmax is the largest, at as many positions in a row as the debounce says; values
// that are not finite refuse; heads are asked in their order until one refuses; refuse > escalate > allow.
// tests/golden/verdict_rule.json has cases that this code, the page of the server and so8t trace agree on.

// settings of one head
struct so8t_head_rule {
    llama_so8t_scope scope = LLAMA_SO8T_SCOPE_BOTH;
    llama_so8t_rule rule   = LLAMA_SO8T_RULE_THRESHOLD;
    bool fitted            = true;          // otherwise it does not act
    int32_t debounce       = 1;             // consecutive positions of an answer that must agree
    std::vector<float> thresholds;          // of each label; argmax does not use them
    std::vector<llama_so8t_action> actions; // of each label
};

// the strongest action at a position, and what asked for it
struct so8t_found {
    llama_so8t_action action = LLAMA_SO8T_ACTION_ALLOW;
    int32_t head             = -1;
    int32_t label            = -1; // of the head; -1: its values are not finite
    int32_t n_run            = 0;  // positions that agreed
};

// link(logits / temperature) of the n labels of a head; false and NaN where a logit is not finite
LLAMA_API bool so8t_probabilities(
    const float * logits, size_t n, float temperature, llama_so8t_link link, float * probs);

// the label with the largest of n probabilities, the first of equal ones; -1: they are not finite
LLAMA_API int32_t so8t_largest(const float * probs, size_t n);

inline bool so8t_in_scope(llama_so8t_scope scope, bool is_prompt) {
    return scope & (is_prompt ? LLAMA_SO8T_SCOPE_PROMPT : LLAMA_SO8T_SCOPE_ANSWER);
}

// one head at the next position of a part; probs: of each label, all finite or none. n_above: consecutive positions up
// to here at which the rule has held for each label, empty where the part begins. A prompt has one position, and
// needs no other to agree.
LLAMA_API so8t_found so8t_judge_head(
    const so8t_head_rule & rule, bool is_prompt, const float * probs, std::vector<int32_t> & n_above);

// the first label that has triggered by n_above, in the order of the head; -1: none
LLAMA_API int32_t so8t_first_label(const so8t_head_rule & rule, bool is_prompt, const std::vector<int32_t> & n_above);

// positions of an answer that have to agree before a label of this head acts; 0: none of them acts on answers
LLAMA_API int32_t so8t_n_needed(const so8t_head_rule & rule);

// whether one more position of an answer can be the one where a label triggers; n_above: see so8t_judge_head()
LLAMA_API bool so8t_can_trigger(const so8t_head_rule & rule, const std::vector<int32_t> & n_above);

// all heads at one position; ask(head) says what one of them found. After a refusal no other is asked.
template <typename Ask>
so8t_found so8t_judge(int32_t n_heads, Ask && ask) {
    so8t_found strongest;
    for (int32_t head = 0; head < n_heads && strongest.action != LLAMA_SO8T_ACTION_REFUSE; ++head) {
        const so8t_found found = ask(head);
        if (found.action > strongest.action) {
            strongest      = found;
            strongest.head = head;
        }
    }
    return strongest;
}
