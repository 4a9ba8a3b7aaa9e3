#pragma once

#include "so8t-guard.h"

#include "common.h"
#include "llama-cpp.h"

#include <memory>
#include <mutex>

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
    // counts, and at every token of an answer to it. Nothing is enforced.
    // throws std::invalid_argument: an empty prompt, or more tokens than n_ctx_max; std::runtime_error: no memory for the
    // context, or it could not be evaluated
    so8t_verdict read(const llama_tokens & prompt, const llama_tokens & answer, bool only_answer = false);

    // the adapters of the model have changed
    void set_adapters(const std::vector<common_adapter_lora_info> & adapters);

  private:
    so8t_verdict evaluate(const llama_tokens & prompt, const llama_tokens & answer, bool only_answer);
    void grow(size_t n_tokens);
    size_t reuse(const llama_tokens & tokens, size_t n_max);

    llama_model * model;
    common_params params;
    std::shared_ptr<const so8t_policy> policy;
    uint32_t n_ctx_max;

    std::mutex mutex;
    llama_context_ptr ctx;
    llama_tokens cached; // in the KV cache
};
