#include "so8t-text-judge.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <thread>

static const uint32_t SO8T_MIN_CTX = 512;   // tokens of the smallest context
static const int32_t SO8T_N_READ   = 64;    // positions read at once: each needs a row of logits
static const int64_t SO8T_T_ASK_US = 50000; // between two questions whether a text is needed still

static const char * const SO8T_STOPPED = "so8t: the client has gone, or the server ends: its text is not judged";

so8t_text_judge::so8t_text_judge(
    llama_model * model, const common_params & params, std::shared_ptr<const so8t_policy> policy, uint32_t n_ctx_max) :
    model(model),
    params(params),
    policy(std::move(policy)),
    n_ctx_max(n_ctx_max) {}

void so8t_text_judge::set_adapters(const std::vector<common_adapter_lora_info> & adapters) {
    std::lock_guard<std::mutex> lock(adapters_mutex); // whoever serves does not wait until a text is read
    this->adapters   = adapters;
    has_new_adapters = true;
}

void so8t_text_judge::use_adapters() {
    std::lock_guard<std::mutex> lock(adapters_mutex);
    if (!has_new_adapters) {
        return;
    }
    has_new_adapters     = false;
    params.lora_adapters = adapters;
    cached.clear(); // it was evaluated with the others
    if (ctx) {
        common_set_adapter_lora(ctx.get(), params.lora_adapters);
    }
}

// whether the text that is read now is needed no more
bool so8t_text_judge::stops() {
    const int64_t t = ggml_time_us();
    if (!stopped && t - t_asked >= SO8T_T_ASK_US) {
        t_asked = t;
        stopped = ended || (*should_stop && (*should_stop)());
    }
    return stopped;
}

void so8t_text_judge::grow(size_t n_tokens) {
    if (n_tokens > n_ctx_max) {
        throw std::invalid_argument(string_format(
            "so8t: a text to judge has %zu tokens, more than fit into the context (%u, -c)", n_tokens, n_ctx_max));
    }
    if (ctx && n_tokens <= llama_n_ctx(ctx.get())) {
        return;
    }
    uint32_t n_ctx = SO8T_MIN_CTX;
    while (n_ctx < n_tokens) {
        n_ctx *= 2;
    }
    llama_context_params cparams  = common_context_params_to_llama(params);
    cparams.n_ctx                 = std::min(n_ctx, std::max(n_ctx_max, SO8T_MIN_CTX));
    cparams.n_batch               = std::min(cparams.n_batch, cparams.n_ctx);
    cparams.n_ubatch              = std::min(cparams.n_ubatch, cparams.n_batch);
    cparams.n_seq_max             = 1;
    cparams.n_outputs_max         = SO8T_N_READ;
    cparams.n_outputs_max_per_seq = SO8T_N_READ;
    cparams.embeddings            = false;
    cparams.swa_full              = true; // a text is cut back to what the next one shares with it
    cparams.samplers              = nullptr;
    cparams.n_samplers            = 0;
    cparams.cb_eval               = nullptr; // of whoever watches the generation
    cparams.abort_callback        = [](void * judge) { return ((so8t_text_judge *) judge)->stops(); };
    cparams.abort_callback_data   = this;

    cached.clear();
    ctx.reset(); // its memory may be needed for the larger one
    ctx.reset(llama_init_from_model(model, cparams));
    if (!ctx) {
        throw so8t_unavailable(
            string_format("so8t: no memory for a context of %u tokens to judge a text in", cparams.n_ctx));
    }
    common_set_adapter_lora(ctx.get(), params.lora_adapters);
}

// how many tokens of a text the KV cache holds already, at most n_max; it holds no others afterwards
size_t so8t_text_judge::reuse(const llama_tokens & tokens, size_t n_max) {
    size_t n = 0;
    while (n < std::min({tokens.size(), cached.size(), n_max}) && tokens[n] == cached[n]) {
        n++;
    }
    llama_memory_t memory = llama_get_memory(ctx.get());
    if (n == 0 || !llama_memory_seq_rm(memory, 0, n, -1)) { // a recurrent state cannot be cut back
        llama_memory_clear(memory, false);
        n = 0;
    }
    cached.resize(n);
    return n;
}

so8t_text_verdict so8t_text_judge::read(
    const llama_tokens & prompt, const llama_tokens & answer, bool only_answer, const so8t_should_stop & should_stop) {
    if (prompt.empty()) {
        throw std::invalid_argument("so8t: there is no text to judge");
    }
    std::unique_lock<std::timed_mutex> lock(mutex, std::defer_lock);
    while (!lock.try_lock_for(std::chrono::microseconds(SO8T_T_ASK_US))) {
        if (ended || (should_stop && should_stop())) {
            throw so8t_unavailable(SO8T_STOPPED);
        }
    }
    this->should_stop = &should_stop;
    stopped           = false;
    t_asked           = 0;

    // A thread of its own, which ends: OpenMP keeps a team for each thread that has computed, and makes all of them wait
    // without spinning while there are more threads than processors. The slots then read a prompt 20 % slower.
    so8t_text_verdict read;
    std::exception_ptr error;
    std::thread thread([&]() {
        try {
            read = evaluate(prompt, answer, only_answer);
        } catch (...) {
            error = std::current_exception();
        }
    });
    thread.join();
    if (error) {
        std::rethrow_exception(error);
    }
    return read;
}

so8t_text_verdict so8t_text_judge::evaluate(
    const llama_tokens & prompt, const llama_tokens & answer, bool only_answer) {
    use_adapters();

    llama_tokens tokens = prompt;
    tokens.insert(tokens.end(), answer.begin(), answer.end());
    grow(tokens.size());

    so8t_sampling_params request;
    request.policy  = policy;
    request.judging = true;
    so8t_guard guard(model, request, false);
    for (const llama_token token : prompt) {
        guard.accept(token, false);
    }

    // position i is read if it is in the answer, the end of the prompt, or a prompt_token of a head
    const auto is_read = [&](size_t i) {
        return i >= prompt.size() || (!only_answer && (i + 1 == prompt.size() || guard.reads_at(prompt, i + 1)));
    };

    size_t first = 0;
    while (first + 1 < tokens.size() && !is_read(first)) {
        first++;
    }
    common_batch batch(ctx.get());
    const size_t n_reused = reuse(tokens, first);
    for (size_t i = n_reused; i < tokens.size();) {
        const size_t begin = i;
        batch.clear();
        for (int32_t n_read = 0;
            i < tokens.size() && batch.size() < (int32_t) llama_n_batch(ctx.get()) && n_read < SO8T_N_READ; ++i) {
            batch.add(tokens[i], i, 0, is_read(i));
            n_read += is_read(i);
        }
        if (stops() || llama_process(ctx.get(), LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
            cached.clear();
            throw so8t_unavailable(stopped ? SO8T_STOPPED : "so8t: a text to judge could not be evaluated");
        }
        cached.assign(tokens.begin(), tokens.begin() + i);
        for (size_t at = begin; at < i; ++at) {
            if (!is_read(at)) {
                continue;
            }
            if (at + 1 < prompt.size()) {
                guard.read_prompt(ctx.get(), at - begin, tokens[at]);
                continue;
            }
            if (at >= prompt.size()) {
                guard.accept(tokens[at], true);
            }
            guard.observe(ctx.get(), at - begin);
        }
    }
    return {guard.verdict().value_or(so8t_verdict()), tokens.size() - n_reused};
}
