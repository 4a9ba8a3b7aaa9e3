#pragma once

#include "so8t.h"
#include "so8t-policy.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

class common_json;

// what the sampler of a request knows of so8t
struct so8t_sampling_params {
    std::shared_ptr<const so8t_policy> policy; // null: the model has no heads

    // of one request
    bool trace       = false; // collect the probabilities of every token
    bool annotations = false; // answer with Azure's content_filter_results too

    // only set by our own endpoints: judge this text as the answer instead of generating one, enforce nothing
    bool judge = false;
    std::string judged;
};

// probabilities of each head where its prompt_token was read, empty for the others
using so8t_prompt_probs = std::vector<std::vector<float>>;

enum so8t_part {
    SO8T_PART_PROMPT,
    SO8T_PART_THINK,
    SO8T_PART_ANSWER,
    SO8T_N_PARTS,
};

// what the policy says about an answer
struct so8t_outcome {
    llama_so8t_action action = LLAMA_SO8T_ACTION_ALLOW; // to be enforced

    // generated tokens before the first one of the run that triggered the action: no others may be delivered
    int32_t n_deliverable = INT32_MAX;
};

// Verdicts of one request, and what they enforce. It stands where a token is sampled, so that each tool, endpoint
// and slot passes it: the heads are read at every position a token is sampled from. The first one is the last
// token of the prompt. Token p of the answer is judged when token p + 1 is sampled. Without heads in the model, or
// with the policy off, nothing is read.
//
// A head with a prompt_token reads the prompt where the last such token stands. Who evaluates the prompt ends a batch
// there (reads_at), so that it is an output, and calls read_prompt; a head that was not read so, is at the last token.
class so8t_guard {
  public:
    so8t_guard() = default;
    so8t_guard(const llama_model * model, const so8t_sampling_params & params, bool has_grammar);

    // forgets the request
    void begin();

    // whether the first n tokens of a prompt end with the last prompt_token of a head
    template <typename Tokens>
    bool reads_at(const Tokens & prompt, size_t n) const {
        return n > 0 && n < prompt.size() &&
               std::any_of(
                   prompt_tokens.begin(), prompt_tokens.end(),
                   [&](llama_token token) { return prompt[n - 1] == token && n_until(prompt, token) == n; });
    }

    // how many of n cached tokens of a prompt can be kept, if all of reads_at are to be evaluated
    template <typename Tokens>
    size_t n_reusable(const Tokens & prompt, size_t n) const {
        for (const llama_token token : prompt_tokens) {
            const size_t until = n_until(prompt, token);
            n                  = until == 0 || until == prompt.size() ? n : std::min(n, until - 1);
        }
        return n;
    }

    // reads the heads of a prompt_token at output idx; begin() forgets them
    void read_prompt(llama_context * ctx, int32_t idx, llama_token token);

    const so8t_prompt_probs & prompt_probs() const { return read_probs; }
    void set_prompt_probs(const so8t_prompt_probs & probs) { read_probs = probs; }

    // reads the heads at output idx, once per sampled token, after the context is synchronized
    // returns the token to use instead of a sampled one, or LLAMA_TOKEN_NULL
    llama_token observe(llama_context * ctx, int32_t idx);

    // a token of the prompt, or one of the answer
    void accept(llama_token token, bool is_generated);

    bool active() const { return params.policy && (params.judge || params.policy->mode != SO8T_MODE_OFF); }
    bool stopped() const { return stop; } // observe() has ended the answer

    const so8t_policy & policy() const { return *params.policy; }
    const so8t_sampling_params & request() const { return params; }

    llama_so8t_action decision() const; // of the heads
    const so8t_outcome & outcome() const { return result; }

    int32_t n_generated() const { return n_accepted; }
    int32_t n_read() const { return n_observed; } // positions
    int64_t t_us() const { return t_observe_us; }
    bool in_think(int32_t n_tokens) const;           // a think block is open after so many generated tokens
    bool takes_text() const { return !has_grammar; } // free text would not break its form

    // generated tokens that may be sent by now, or (is_final) at the end of the answer
    int32_t n_sendable(bool is_final) const;

    // the answer as far as it was enforced: "none", "stop", "message" or "escalation"
    const char * enforced() const;
    // the text that is delivered instead of the rest of the answer; empty: none
    std::string text() const;

    // the verdicts since begin(); null without heads
    //
    // {"decision", "enforced", "policy": {"mode", "sha256"},
    //  "prompt": {"action", "heads": {NAME: {"label", "probabilities"}}},
    //  "think", "answer": {"action", "n_positions", "heads": {NAME: {"label", "probabilities", "peak", "triggered"}}},
    //  "triggered": null | {"part", "position", "head", "label", "probability"},
    //  "thresholds": {NAME: {LABEL: T}}, "debounce": {NAME: N}}
    // label is the one with the largest (last) probability; peak the largest probability of each label over the
    // part; triggered null, or the first {"position", "label"} whose action was not allow, at the top the first
    // one of the decision. Positions and debounce start anew in each part.
    common_json verdict() const;

    // of every token that was judged, if the request asks for it; null otherwise:
    // [{"part", "position", "id", "text", "heads"}], the last token of the prompt and then those of the answer
    common_json trace() const;

    // each change of a head's label, the first included: [{"part", "position", "head", "label", "probabilities"}]
    common_json changes() const;

  private:
    struct head_state {
        std::vector<float> probs;     // at the last position
        std::vector<float> peak;      // largest so far
        std::vector<int32_t> n_above; // consecutive positions at or above the threshold
        int32_t best     = -2;        // label of the last position, -1: not finite
        int32_t position = -1;        // where a label first triggered
        int32_t label    = -1;
    };

    struct part_state {
        llama_so8t_action action = LLAMA_SO8T_ACTION_ALLOW;
        int32_t n_positions      = 0;
        int32_t start            = 0;  // first of the generated tokens
        std::vector<head_state> heads; // empty for a head that is out of scope or was not consulted
    };

    struct reading {
        so8t_part part;
        int32_t position;
        int32_t head;  // -1: the token itself, of the trace
        int32_t label; // of a trace: the token
        std::vector<float> probs;
    };

    struct trigger {
        llama_so8t_action action = LLAMA_SO8T_ACTION_ALLOW;
        so8t_part part;
        int32_t position;
        int32_t head;
        int32_t label;
        float probability;
        int32_t n_run; // positions that agreed
    };

    enum think_state { THINK_POSSIBLE, THINK_OPEN, THINK_DONE };

    // tokens up to the last one of these, 0 if there is none
    template <typename Tokens>
    static size_t n_until(const Tokens & prompt, llama_token token) {
        size_t n = prompt.size();
        while (n > 0 && prompt[n - 1] != token) {
            n--;
        }
        return n;
    }

    void observe(so8t_part part, llama_context * ctx, int32_t idx);
    void enforce(so8t_part part, const trigger & found);
    void follow(llama_token token);
    std::string label_name(int32_t head, int32_t label) const;
    common_json probabilities(int32_t head, const std::vector<float> & values) const;
    common_json part_json(so8t_part part) const;

    const llama_model * model = nullptr;
    so8t_sampling_params params;
    bool has_grammar = false;

    std::vector<llama_token> forced;        // the answer to judge
    std::vector<llama_token> prompt_tokens; // of the heads that have one

    so8t_prompt_probs read_probs;

    part_state parts[SO8T_N_PARTS];
    trigger first; // of the decision
    so8t_outcome result;
    bool stop            = false;
    int32_t n_observed   = 0;
    int32_t n_accepted   = 0; // generated tokens
    int32_t n_prompt     = 0;
    int64_t t_observe_us = 0;
    std::vector<reading> log;      // changes of labels
    std::vector<reading> readings; // of the trace

    std::vector<llama_token> tail; // of the prompt
    think_state think      = THINK_POSSIBLE;
    int32_t think_begin    = INT32_MAX; // generated tokens up to the inside of the block
    int32_t think_end      = INT32_MAX; // and up to its end
    llama_token last_token = LLAMA_TOKEN_NULL;
    so8t_part last_part    = SO8T_PART_ANSWER; // of the last token
};
