#pragma once

#include "so8t.h"

#include <cstdint>
#include <vector>

class common_json;

// Verdicts of one request: read at every position a token is sampled from, so that each tool, endpoint and
// slot passes here. The first position after begin() is the last one of the prompt, the others are the answer.
// Without heads in the model nothing is read.
class so8t_guard {
  public:
    void begin();

    // reads the heads at output idx; call once per sampled token, after the context is synchronized
    void observe(llama_context * ctx, int32_t idx);

    llama_so8t_action decision() const;

    // the verdicts since begin(), and begin(); null without heads
    //
    // {"decision", "prompt": {"action", "heads": {NAME: {"label", "probabilities"}}},
    //  "answer": {"action", "n_positions", "heads": {NAME: {"label", "peak", "triggered"}}}}
    // label is the one with the largest (last) probability; peak the largest probability of each label over
    // the answer; triggered null, or the first {"position", "label"} whose action was not allow
    common_json end();

  private:
    struct head_state {
        std::vector<float>   probs;        // at the last position
        std::vector<float>   peak;         // largest so far
        std::vector<int32_t> n_above;      // consecutive positions at or above the threshold
        int32_t              position = -1; // where a label first triggered
        int32_t              label    = -1;
    };

    struct part_state {
        llama_so8t_action       action      = LLAMA_SO8T_ACTION_ALLOW;
        int32_t                 n_positions = 0;
        std::vector<head_state> heads; // empty for a head that is out of scope or was not consulted
    };

    void observe(part_state & part, llama_so8t_scope scope, llama_context * ctx, int32_t idx);
    void write(const part_state & part, bool is_answer, common_json & result) const;

    const llama_model * model = nullptr; // set by the first observation of a model with heads

    part_state prompt;
    part_state answer;
};
