#pragma once

#include "so8t-args.h"
#include "so8t-audit.h"
#include "so8t-client-texts.h"
#include "so8t-counters.h"
#include "so8t-escalations.h"
#include "so8t-guard.h"
#include "so8t-otlp.h"
#include "so8t-readings.h"
#include "so8t-reviewers.h"
#include "so8t-webhook.h"

#include "server-common.h"
#include "server-task.h"

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// an answer, for the audit log
struct so8t_request_record {
    std::string id;
    int id_task = -1; // of none: -1
    int id_slot = -1;
    std::string prompt;
    int32_t n_prompt; // tokens
    std::string answer;
    int32_t n_answer;
    std::shared_ptr<const std::vector<so8t_text_digest>> messages;
    bool judge     = false;    // a text was judged
    bool cancelled = false;    // the answer has no end
    std::map<int, float> lora; // adapters that the request has chosen: index and scale
};

// What llama-server knows of so8t: the model and its policy, the audit log, the answers that wait for a person, and
// counters. One model per server. All functions may be called from any thread, and do nothing without heads.
//
// It belongs to the server's context, which lives on the stack: a second Ctrl-C, which exits from a signal handler,
// destroys none of it, and waits for no lock.
class so8t_server {
  public:
    // after the model is loaded, also when it is loaded again after a sleep; false, and an error line, if the audit
    // log cannot be opened
    bool load(const llama_model * model, const common_params & params);

    // what is needed to judge a text apart from the slots, each of which has room for n_ctx tokens
    void prepare(llama_model * model, const common_params & params, const server_chat_params & chat, uint32_t n_ctx,
        server_queue & queue);

    // the model goes, at the end or for a sleep: no text is judged until prepare() is called again
    void unload() { readings.unload(); }

    // whether a client may choose the adapters, by which it is judged as well: for its request, or for all
    bool takes_adapters() const;

    // adapters of the model, as POST /lora-adapters has set them: what was read with others is forgotten, and the audit
    // log has a line of it
    void set_adapters(const std::vector<common_adapter_lora_info> & adapters);

    // before the queues of the server go
    void stop();

    // answers all clients that wait for a person, as the server ends; while it still serves
    void end_waiting();

    bool has_heads() const { return policy != nullptr; }
    double escalation_wait() const { return policy ? policy->escalation_wait : 0; }
    const std::string & model_name() const { return model.name; }

    // Adds what the sampler is to know of a request: what its body asks for, and the verdicts of the texts in its prompt,
    // all of which are read here, unless they are remembered. type: of the endpoint.
    // throws std::invalid_argument: a wrong "so8t", raw prompts that are not served; so8t_unavailable: the texts cannot be
    // read now, or should_stop said so; std::exception: a text could not be read
    void read_request(task_params & params, const json & body, const server_tokens & prompt, task_response_type type,
        const so8t_should_stop & should_stop);

    // The verdict of a conversation and, if it is not null, of an answer to it; nothing is enforced. Control tokens in the
    // texts are text.
    // throws so8t_unavailable: not now; std::exception: of the template, or a text that is too long
    so8t_verdict judge(const std::vector<common_chat_msg> & messages, const std::string * answer, bool only_answer,
        const so8t_should_stop & should_stop);

    // The verdict of a conversation whose next answer another model gives: at its end and of each of its turns, as of a
    // request that is answered here; nothing is enforced.
    // throws as judge() does
    so8t_verdict judge_chat(const std::vector<common_chat_msg> & messages, const so8t_should_stop & should_stop);

    // what the user said last in a prompt, as the chat template writes it; the prompt itself where this is not known
    std::string question_of(const std::string & prompt) { return readings.question_of(prompt); }

    // remembers what a slot has read: the conversation may come back with more behind it
    void remember(const so8t_sampling_params & request, const so8t_verdict & verdict, const std::string & answer) {
        readings.remember(request, verdict, answer);
    }

    // false while audit lines could not be written and no answer may be given; tries again
    bool may_serve();

    // Appends an audit line for an answer. Returns false when the line could not be written and the policy forbids
    // answering without it; the line is queued, with "unavailable" as enforced, and retried. entry: nothing without a log
    bool record(const so8t_request_record & request, const so8t_verdict & verdict, bool durable,
        std::optional<so8t_verdict::audit_entry> & entry);

    // counts a verdict after its line is written, and tells of it; of the record only who asked
    void count(const so8t_verdict & verdict, const so8t_request_record & record);

    json info() const;              // GET /so8t
    std::string prometheus() const; // in /metrics
    json add_props(json props) const;

    const so8t_policy * get_policy() const { return policy.get(); } // null without heads
    const so8t_audit * audit() const { return log.get(); }
    so8t_escalations * escalations() const { return waiting.get(); } // null if no answer can be held

    const so8t_reviewers * reviewers() const { return known_reviewers.get(); } // null: everyone may decide

    // whether a task has nothing to do: its client repeats a request whose answer is held, and waits for that
    bool join(const server_task & task) { return waiting && waiting->join(task.id); }

  private:
    struct model_info {
        std::string architecture;
        std::string name;
        std::string path;
        std::string served;                       // as clients name it
        std::string sha256;                       // of the tensors; empty without an audit log
        std::vector<so8t_heads_file> heads_files; // beside it

        json to_json(bool with_path) const;
    };

    // a LoRA adapter, as it is now
    struct adapter_info {
        std::string path;
        std::string sha256; // of the file
        float scale;
    };

    void open_log(const common_params & params);
    json adapters_json() const;
    void begin_waiting(const common_params & params);
    so8t_verdict record_judged(so8t_readings::judged_text && judged, const std::vector<common_chat_msg> & messages,
        const std::string & answer);
    std::shared_ptr<const std::vector<so8t_text_digest>> digests(const std::vector<so8t_client_text> & texts) const;
    json request_json(const so8t_request_record & request, const so8t_verdict & verdict) const;
    std::optional<so8t_audit::entry> write(const char * event, const json & fields, bool durable);
    bool write_lost();
    void keep(const char * event, const json & fields);
    bool record_decision(const so8t_escalation & decided);
    void tell(const char * type, const so8t_escalation & escalation);

    std::shared_ptr<const so8t_policy> policy;
    std::unique_ptr<so8t_audit> log;
    std::unique_ptr<so8t_otlp> events; // null: none are sent
    std::unique_ptr<so8t_webhook> webhook;
    std::unique_ptr<so8t_reviewers> known_reviewers;
    std::unique_ptr<so8t_escalations> waiting;

    so8t_readings readings;

    bool audit_required = false;
    model_info model;

    mutable std::mutex adapters_mutex;
    std::vector<adapter_info> adapters;

    // for info()
    json heads;
    json policy_json;
    json rotations;

    std::mutex write_mutex;
    std::deque<std::pair<const char *, json>> lost; // events that could not be written, to be tried again
    uint64_t n_dropped = 0;                         // more of them

    so8t_counters counters;
};
