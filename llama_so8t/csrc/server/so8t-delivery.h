#pragma once

#include "so8t-guard.h"
#include "so8t-server.h"

#include "server-queue.h"
#include "server-task.h"

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

// An answer on its way from a slot to its client. What happens is told at the top of so8t-delivery.cpp.
class so8t_delivery {
  public:
    // a slot takes a request; lora: adapters that it has chosen, by their index, and their scales
    void begin(so8t_server & server, const std::map<int, float> & lora);

    // a prompt on its way into batches, for the heads that are read inside of it (so8t_guard); guard may be null
    int32_t n_reusable(const so8t_guard * guard, const server_tokens & prompt, int32_t n_cached) const;
    bool ends_batch(const so8t_guard * guard, const server_tokens & prompt, int32_t n_tokens, int32_t i_batch);
    void read_prompt(
        so8t_guard * guard, llama_context * ctx, int32_t i_begin, int32_t n_batch); // outputs of a part of the batch
    void copy_prompt(const so8t_delivery & other) { prompt_probs = other.prompt_probs; }

    // the generated text has this size after the next token
    void add_text(size_t size) { text_ends.push_back(size); }

    // sends a part of the stream, or withholds it until its tokens are judged
    void send(
        const so8t_guard * guard, server_response & queue, std::unique_ptr<server_task_result_cmpl_partial> && partial);

    // enforces, records and sends the end of an answer; text: all of it
    void finish(const so8t_guard * guard, server_response & queue,
        std::unique_ptr<server_task_result_cmpl_final> && final, const std::string & text);

    // records an answer that has no end: its client went away, or it failed
    void abandon(const so8t_guard * guard, const server_task & task, int id_slot, const llama_context * ctx,
        const std::string & text);

  private:
    using final_ptr   = std::unique_ptr<server_task_result_cmpl_final>;
    using partial_ptr = std::unique_ptr<server_task_result_cmpl_partial>;

    struct withheld {
        int32_t n_tokens; // of the answer up to its end
        partial_ptr partial;
    };

    struct held_answer;

    template <typename Result>
    void post(server_response & queue, std::unique_ptr<Result> && result) const;
    void release(server_response & queue, int32_t n_tokens);
    void drop(server_response & queue);
    void keep(const server_task_result_cmpl_partial & partial);
    std::string sent_text() const;
    void cut(server_task_result_cmpl_final & final, int32_t n_tokens) const;
    int32_t deliver(server_task_result_cmpl_final & final, server_response & queue, int32_t n_tokens);

    void send_final(const so8t_guard & guard, server_response & queue, final_ptr && final, so8t_verdict && verdict,
        int32_t n_tokens);
    void send_edited(const so8t_guard & guard, server_response & queue, final_ptr && final, so8t_verdict && verdict,
        const std::string & text);
    void send_unavailable(server_response & queue, const server_task_result_cmpl_final & final);
    void hold(const so8t_guard & guard, server_response & queue, final_ptr && final, so8t_verdict && verdict,
        const std::string & text);

    so8t_server * server = nullptr;
    std::map<int, float> lora;
    so8t_prompt_probs prompt_probs;
    llama_token prompt_token = LLAMA_TOKEN_NULL;
    int32_t i_prompt_token   = -1; // in the batch
    std::deque<withheld> queue_partial;
    std::vector<partial_ptr> kept; // copies of what was sent, for clients that join; only where answers can be held
    std::vector<int> joined;       // tasks of these clients
    std::vector<size_t> text_ends;
    bool sent      = false; // a part of the stream
    bool has_text  = false; // sent with text
    int32_t n_sent = 0;     // tokens sent
    bool done      = true;
};
