#pragma once

#include "so8t-answer.h"
#include "so8t-args.h"
#include "so8t-audit.h"
#include "so8t-escalations.h"
#include "so8t-guard.h"

#include "server-queue.h"
#include "server-task.h"

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

// What llama-server knows of so8t: the model and its policy, the audit log, the answers that wait for a person, and
// counters. One model per process. All functions may be called from any thread, and do nothing without heads.

class so8t_server {
  public:
    static so8t_server & get();

    // after the model is loaded, also when it is loaded again after a sleep; false, and an error line, if the audit
    // log cannot be opened
    bool load(const llama_model * model, const common_params & params);

    // before the queues of the server go
    void stop();

    bool has_heads() const { return policy != nullptr; }

    // a line of the audit log for an answer; false: it could not be written (it is tried again later, "unavailable" as
    // what was enforced), and the answer may not be given. entry: "seq" and "hash", null without a log
    bool record(const json & request, bool durable, json & entry);

    // false while lines could not be written and no answer may be given; tries again
    bool may_serve();

    json text_record(const std::string & text, int32_t n_tokens) const; // null without a log

    void count(const so8t_guard & guard, const json & verdict);

    const json & head(const std::string & name) const { return heads.at(name); } // "labels", "actions", ...

    json categories() const; // {head: [labels whose action is not allow]}

    json info() const;              // GET /so8t
    std::string prometheus() const; // in /metrics
    void add_props(json & props) const;
    so8t_audit * audit() const { return log.get(); }

    const json & model_info() const { return model; }

    std::unique_ptr<so8t_escalations> escalations; // null without reviewers

  private:
    json counters() const;
    bool write(const char * event, const json & fields, bool durable, json & entry);
    bool write_lost();
    void keep(const char * event, const json & fields);
    bool record_decision(const so8t_escalation & decided);

    std::shared_ptr<const so8t_policy> policy;
    std::unique_ptr<so8t_audit> log;

    bool audit_required = false;
    json model; // architecture, name, path, sha256
    json heads;
    json policy_json;
    json rotations;

    std::mutex write_mutex;
    std::deque<std::pair<const char *, json>> lost; // events that could not be written, to be tried again
    uint64_t n_dropped = 0;                         // more of them

    mutable std::mutex count_mutex;
    std::map<std::string, uint64_t> n_decisions, n_enforced, n_escalations;
    std::map<std::tuple<std::string, std::string, std::string>, uint64_t> n_labels; // part, head, label
    uint64_t n_read = 0;
    uint64_t t_us   = 0;
};

// The "so8t" object of a request, for its sampler. Throws std::invalid_argument.
so8t_sampling_params so8t_request(const json & data);

// While it lives, the requests of this thread are judged, and nothing is enforced: answer, the text to judge, is
// evaluated instead of a generated one. Nothing that a client sends sets it.
class so8t_judging {
  public:
    explicit so8t_judging(const std::string & answer);
    ~so8t_judging();
};

// An answer on its way from a slot to its client.
class so8t_delivery {
  public:
    // a slot takes a request
    void begin();

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
    struct withheld {
        int32_t n_tokens; // of the answer up to its end
        std::unique_ptr<server_task_result_cmpl_partial> partial;
    };

    void release(server_response & queue, int32_t n_tokens);
    void drop(server_response & queue);
    void cut(server_task_result_cmpl_final & final, int32_t n_tokens) const;
    int32_t deliver(server_task_result_cmpl_final & final, server_response & queue, int32_t n_tokens);

    so8t_prompt_probs prompt_probs;
    llama_token prompt_token = LLAMA_TOKEN_NULL;
    int32_t i_prompt_token   = -1; // in the batch
    std::deque<withheld> queue_partial;
    std::vector<size_t> text_ends;
    bool sent      = false; // a part of the stream
    bool has_text  = false; // sent with text
    int32_t n_sent = 0;     // tokens sent
    bool done      = true;
};
