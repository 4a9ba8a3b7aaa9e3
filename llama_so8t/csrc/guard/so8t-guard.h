#pragma once

#include "so8t-sampling-params.h"
#include "so8t-verdict.h"
#include "so8t.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

// a text of a client, of which nothing but this is kept
struct so8t_text_digest {
    std::string role; // empty: of a raw prompt
    size_t n_bytes;
    std::string hmac;
};

// probabilities of each head where its prompt_token was read, empty for the others
using so8t_prompt_probs = std::vector<std::vector<float>>;

// The think block of an answer. It is open if the prompt ends with <think> or the answer begins with it, and is over
// with </think>: its tags belong to it, and an answer cannot open another one to be judged by the rules of thinking.
class so8t_think_block {
  public:
    void accept_prompt(llama_token token);

    // the next generated token, the first one is number 0; which part it belongs to
    so8t_part accept(const llama_vocab * vocab, llama_token token, int32_t number);

    bool is_open(int32_t n_tokens) const { return begin <= n_tokens && n_tokens < end; } // after so many of them

    llama_token last_of_prompt() const { return tail.empty() ? LLAMA_TOKEN_NULL : tail.back(); }

  private:
    enum { POSSIBLE, OPEN, DONE } state = POSSIBLE;

    std::vector<llama_token> tail; // of the prompt
    int32_t begin = INT32_MAX;     // generated tokens up to the inside of the block
    int32_t end   = INT32_MAX;     // and up to its end
};

// Verdicts of one request, and what they enforce. It stands where a token is sampled, so that each tool, endpoint
// and slot passes it: the heads are read at every position a token is sampled from. The first one is the last
// token of the prompt. Token p of the answer is judged when token p + 1 is sampled. Without heads in the model, or
// with the policy off, nothing is read.
//
// A head with a prompt_token reads the prompt where the last such token stands. The caller must end a batch at that token
// (see reads_at), so that it has an output, and then call read_prompt. A head that is not read this way is read at the
// last token of the prompt.
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

    bool active() const { return params.policy && (params.judging || params.policy->mode != SO8T_MODE_OFF); }
    bool stopped() const { return stop; } // observe() has ended the answer

    const so8t_policy & policy() const { return *params.policy; }
    const so8t_sampling_params & request() const { return params; }

    llama_so8t_action action() const { return outcome.action; } // to be enforced

    int32_t n_generated() const { return n_accepted; }
    int32_t n_read() const { return seen.n_read; }                            // positions
    bool in_think(int32_t n_tokens) const { return think.is_open(n_tokens); } // after so many generated tokens
    bool takes_text() const { return !has_grammar; }                          // free text would not break its form

    // generated tokens that may be sent by now, or (is_final) at the end of the answer
    int32_t n_sendable(bool is_final) const;

    // the answer as far as the guard itself enforces: none, stop, message or escalation
    so8t_enforced enforced() const;
    // the text that is delivered instead of the rest of the answer; empty: none
    std::string text() const;

    // since begin(); nothing without heads
    std::optional<so8t_verdict> verdict() const;

  private:
    // what the policy says about an answer
    struct policy_outcome {
        llama_so8t_action action = LLAMA_SO8T_ACTION_ALLOW;

        // generated tokens before the first one of the run that triggered the action: no others may be delivered
        int32_t n_deliverable = INT32_MAX;
    };

    // a part as it goes on
    struct part_run {
        int32_t start = 0; // first of the generated tokens
        std::vector<so8t_head_run> heads;
    };

    // tokens up to the last one of these, 0 if there is none
    template <typename Tokens>
    static size_t n_until(const Tokens & prompt, llama_token token) {
        size_t n = prompt.size();
        while (n > 0 && prompt[n - 1] != token) {
            n--;
        }
        return n;
    }

    void judge(so8t_part part, llama_context * ctx, int32_t idx);
    so8t_found ask(so8t_part part, int32_t head, llama_context * ctx, int32_t idx);
    void read_prompt_end(int32_t head, llama_context * ctx, int32_t idx, std::vector<float> & probs) const;
    so8t_found judge_prompt(int32_t head, llama_context * ctx, int32_t idx, so8t_head_verdict & result) const;
    std::vector<so8t_text_span> prompt_texts(llama_context * ctx) const;
    void read_answer(so8t_part part, int32_t head, llama_context * ctx, int32_t idx, std::vector<float> & probs);
    void read_unasked(llama_context * ctx, int32_t idx);
    void judge_turns();
    bool last_can_trigger() const;
    void begin_trace(so8t_part part);
    void enforce(so8t_part part, int32_t position, const so8t_found & found);

    const llama_model * model = nullptr;
    so8t_sampling_params params;
    bool has_grammar = false;

    std::vector<llama_token> prompt_tokens; // of the heads that have one

    // of the request
    so8t_prompt_probs read_probs;
    std::vector<llama_token> prompt; // where a head reads its texts
    so8t_verdict seen;               // but for what was enforced
    part_run runs[SO8T_N_PARTS];
    policy_outcome outcome;
    so8t_think_block think;
    bool stop              = false;
    int32_t n_accepted     = 0; // generated tokens
    int32_t n_prompt       = 0;
    llama_token last_token = LLAMA_TOKEN_NULL;
    so8t_part last_part    = SO8T_PART_ANSWER; // of the last token
};
