#pragma once

#include "so8t-guard.h"

#include "common.h"
#include "llama-cpp.h"

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

// nothing is wrong with the text: it may be read later
struct so8t_unavailable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using so8t_should_stop = std::function<bool()>;

struct so8t_text_verdict {
    so8t_verdict verdict;
    size_t n_evaluated; // tokens: the others were in the KV cache
};

// Reads texts with the heads of a model, apart from what generates: a llama_context of its own that shares the weights.
//
// The context is made at the first use and made anew where a text needs a larger one; its KV cache keeps the last text,
// so that a conversation that grows is not evaluated again. One text at a time: read() may be called from any thread.
class so8t_text_judge {
  public:
    // params: of the context that generates (threads, types of the KV cache, devices); n_ctx_max: longest text, in tokens
    so8t_text_judge(llama_model * model, const common_params & params, std::shared_ptr<const so8t_policy> policy,
        uint32_t n_ctx_max);

    // Reads the heads at the last token of a prompt (those with a prompt_token at the last of these) unless only the answer
    // counts, and at every token of an answer to it. Nothing is enforced. should_stop is asked every 50 ms or so.
    // throws std::invalid_argument: an empty prompt, or more tokens than n_ctx_max; so8t_unavailable: no memory for the
    // context, it could not be evaluated, or should_stop said so
    so8t_text_verdict read(const llama_tokens & prompt, const llama_tokens & answer, bool only_answer,
        const so8t_should_stop & should_stop);

    // the adapters of the model have changed: every read() that begins later is with these
    void set_adapters(const std::vector<common_adapter_lora_info> & adapters);

    // the model goes: every read() ends soon
    void end() { ended = true; }

  private:
    so8t_text_verdict evaluate(const llama_tokens & prompt, const llama_tokens & answer, bool only_answer);
    void grow(size_t n_tokens);
    void use_adapters();
    size_t reuse(const llama_tokens & tokens, size_t n_max);
    bool stops();

    llama_model * model;
    common_params params;
    std::shared_ptr<const so8t_policy> policy;
    uint32_t n_ctx_max;

    std::atomic<bool> ended{false};

    std::mutex adapters_mutex; // of the next two
    std::vector<common_adapter_lora_info> adapters;
    bool has_new_adapters = false;

    std::timed_mutex mutex; // of what follows
    llama_context_ptr ctx;
    llama_tokens cached; // in the KV cache
    const so8t_should_stop * should_stop = nullptr;
    int64_t t_asked                      = 0; // when it was asked last, in us
    bool stopped                         = false;
};
