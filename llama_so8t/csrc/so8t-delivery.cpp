#include "so8t-server.h"

#include "server-common.h"

#include <algorithm>
#include <ctime>

using partial_ptr = std::unique_ptr<server_task_result_cmpl_partial>;
using final_ptr   = std::unique_ptr<server_task_result_cmpl_final>;

void so8t_delivery::begin() {
    *this = {};
    done = false;
}

void so8t_delivery::release(server_response & queue, int32_t n_tokens) {
    while (!queue_partial.empty() && queue_partial.front().n_tokens <= n_tokens) {
        sent      = true;
        has_text |= !queue_partial.front().partial->content.empty();
        queue.send(std::move(queue_partial.front().partial));
        queue_partial.pop_front();
    }
}

// what is withheld is not delivered; a stream needs its first event all the same, without text
void so8t_delivery::drop(server_response & queue) {
    if (!sent && !queue_partial.empty()) {
        auto & first = *queue_partial.front().partial;
        first.content.clear();
        first.tokens.clear();
        first.prob_output = {};
        queue_partial.front().n_tokens = 0;
        release(queue, 0);
    }
    queue_partial.clear();
}

void so8t_delivery::send(const so8t_guard * guard, server_response & queue, partial_ptr && partial) {
    if (!guard || !guard->active() || partial->is_begin || partial->is_progress) {
        queue.send(std::move(partial));
        return;
    }
    const int32_t n_tokens = partial->n_decoded;
    queue_partial.push_back({n_tokens, std::move(partial)});
    release(queue, guard->n_sendable(false));
}

//
// the end of an answer
//

// keeps the first n_tokens tokens of an answer that was not streamed
static void so8t_cut(server_task_result_cmpl_final & final, const std::vector<size_t> & text_ends, int32_t n_tokens) {
    const size_t n    = std::max(0, n_tokens);
    const size_t size = n == 0 ? 0 : n <= text_ends.size() ? text_ends[n - 1] : final.content.size();
    final.content.resize(std::min(size, final.content.size()));
    final.content.resize(validate_utf8(final.content));
    final.tokens.resize(std::min(n, final.tokens.size()));
    final.probs_output.resize(std::min(n, final.probs_output.size()));
}

// null without an audit log
static json so8t_request_record(const so8t_guard & guard, const json & verdict, const std::string & id, int id_task, int id_slot,
        const std::string & prompt, int32_t n_prompt, const std::string & text, int32_t n_text) {
    auto & server = so8t_server::get();
    if (!server.audit()) {
        return nullptr;
    }
    json record = {
        {"request",   id},
        {"task",      id_task},
        {"slot",      id_slot},
        {"model",     server.model_info().at("sha256")},
        {"policy",    guard.policy().sha256},
        {"mode",      guard.request().judge ? "judge" : so8t_mode_name(guard.policy().mode)},
        {"prompt",    server.text_record(prompt, n_prompt)},
        {"answer",    server.text_record(text, n_text)},
        {"verdicts",  guard.changes()},
        {"decision",  verdict.at("decision")},
        {"enforced",  verdict.at("enforced")},
        {"triggered", verdict.at("triggered")},
    };
    if (verdict.contains("escalation")) {
        record["escalation"] = verdict.at("escalation").at("id");
    }
    return record;
}

void so8t_delivery::finish(const so8t_guard * guard, server_response & queue, final_ptr && final, const std::string & streamed) {
    done = true;
    json verdict = guard ? guard->verdict() : json(nullptr);
    if (verdict.is_null()) {
        release(queue, INT32_MAX);
        queue.send(std::move(final));
        return;
    }
    auto & server = so8t_server::get();

    const auto &      outcome = guard->outcome();
    const std::string text    = final->stream ? streamed : final->content;
    const bool        hold    = outcome.action == LLAMA_SO8T_ACTION_ESCALATE && server.escalations && guard->policy().escalation_wait > 0;

    so8t_answer & answer = final->so8t;
    answer.annotations = guard->request().annotations;
    answer.close_think = guard->in_think();

    so8t_escalation entry;
    if (hold) {
        entry.id       = "esc-" + random_string();
        entry.created  = std::time(nullptr);
        entry.deadline = entry.created + guard->policy().escalation_wait;
        verdict["enforced"]   = "held";
        verdict["escalation"] = {{"id", entry.id}, {"status", "pending"}, {"reviewer", nullptr}};
    } else {
        answer.text = guard->text();
        if (outcome.action == LLAMA_SO8T_ACTION_REFUSE) {
            answer.refusal = guard->policy().refusal;
        } else if (outcome.action == LLAMA_SO8T_ACTION_ESCALATE && answer.text.empty()) {
            answer.refusal = guard->policy().escalation;
        }
    }

    json line;
    const json record = so8t_request_record(*guard, verdict, final->oaicompat_cmpl_id, final->id, final->id_slot,
        final->prompt, final->n_prompt_tokens, text, final->n_decoded);
    const bool recorded = server.record(record, guard->decision() != LLAMA_SO8T_ACTION_ALLOW, line);
    if (!line.is_null()) {
        verdict["audit"] = line;
    }
    if (!recorded) {
        verdict["enforced"] = "unavailable";
    }
    server.count(*guard, verdict);

    if (!recorded) {
        queue_partial.clear();
        auto error = std::make_unique<server_task_result_error>();
        error->id       = final->id;
        error->index    = final->index;
        error->err_type = ERROR_TYPE_UNAVAILABLE;
        error->err_msg  = "the audit log cannot be written, so no answer is given (--so8t-audit-on-error)";
        queue.send(std::move(error));
        return;
    }

    const int32_t n_sendable = guard->n_sendable(true);
    if (!hold) {
        release(queue, n_sendable);
        drop(queue);
        if (!final->stream) {
            so8t_cut(*final, text_ends, answer.text.empty() ? n_sendable : 0);
        }
        answer.follows = final->stream ? has_text : !final->content.empty();
        answer.verdict = verdict;
        queue.send(std::move(final));
        return;
    }

    // until a person decides: the slot is free, the client waits
    entry.prompt    = final->prompt;
    entry.answer    = text;
    entry.triggered = verdict.at("triggered");

    struct held {
        so8t_delivery delivery;
        final_ptr     final;
        json          verdict;
    };
    auto state = std::make_shared<held>();
    state->delivery = std::move(*this);
    state->final    = std::move(final);
    state->verdict  = verdict;

    const auto policy     = guard->request().policy;
    const bool takes_text = guard->takes_text();
    entry.deliver = [state, policy, takes_text, n_sendable, &queue](const so8t_escalation & decided) {
        auto & answer  = state->final->so8t;
        auto & verdict = state->verdict;

        const bool allowed = decided.status == SO8T_ESCALATION_ALLOWED;
        const bool denied  = decided.status == SO8T_ESCALATION_DENIED;
        verdict["enforced"] = allowed ? "released" : denied ? "denied" : "timeout";
        if (!allowed) {
            const std::string text = denied ? policy->refusal
                : policy->escalation + string_format(" (No reviewer decided within %d s.)", policy->escalation_wait);
            answer.text    = takes_text ? text : "";
            answer.refusal = denied || !takes_text ? text : "";
        }
        verdict["escalation"]["status"] = so8t_escalation_status_name(decided.status);
        if (!decided.reviewer.empty()) {
            verdict["escalation"]["reviewer"] = decided.reviewer;
        }
        auto & delivery = state->delivery;
        delivery.release(queue, allowed ? INT32_MAX : n_sendable);
        delivery.drop(queue);
        if (!state->final->stream && !allowed) {
            so8t_cut(*state->final, delivery.text_ends, takes_text ? 0 : n_sendable);
        }
        answer.follows = state->final->stream && delivery.has_text;
        answer.verdict = verdict;
        queue.send(std::move(state->final));
    };
    server.escalations->hold(std::move(entry));
    begin();
    done = true;
}

void so8t_delivery::abandon(const so8t_guard * guard, const server_task & task, int id_slot, const llama_context * ctx, const std::string & text) {
    if (done || !guard || !guard->active()) {
        return;
    }
    done = true;
    json verdict = guard->verdict();
    if (verdict.is_null()) {
        return;
    }
    auto & server = so8t_server::get();
    json record = so8t_request_record(*guard, verdict, task.params.oaicompat_cmpl_id, task.id, id_slot,
        task.tokens.detokenize(ctx, true), task.n_tokens(), text, guard->n_generated());
    if (!record.is_null()) {
        json line;
        record["cancelled"] = true;
        server.record(record, true, line);
    }
    server.count(*guard, verdict);
}
