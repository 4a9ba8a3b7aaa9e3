#include "so8t-server.h"

#include "server-common.h"

#include <algorithm>
#include <ctime>

using partial_ptr = std::unique_ptr<server_task_result_cmpl_partial>;
using final_ptr   = std::unique_ptr<server_task_result_cmpl_final>;

void so8t_delivery::begin() {
    *this = {};
    done  = false;
}

//
// heads that are read inside of the prompt
//

int32_t so8t_delivery::n_reusable(const so8t_guard * guard, const server_tokens & prompt, int32_t n_cached) const {
    return guard ? guard->n_reusable(prompt, n_cached) : n_cached;
}

bool so8t_delivery::ends_batch(
    const so8t_guard * guard, const server_tokens & prompt, int32_t n_tokens, int32_t i_batch) {
    if (!guard || !guard->reads_at(prompt, n_tokens)) {
        return false;
    }
    prompt_token   = prompt[n_tokens - 1];
    i_prompt_token = i_batch;
    return true;
}

void so8t_delivery::read_prompt(so8t_guard * guard, llama_context * ctx, int32_t i_begin, int32_t n_batch) {
    if (!guard) {
        return;
    }
    if (i_begin <= i_prompt_token && i_prompt_token < i_begin + n_batch) {
        guard->read_prompt(ctx, i_prompt_token - i_begin, prompt_token);
        prompt_probs   = guard->prompt_probs();
        i_prompt_token = -1;
    }
    if (!prompt_probs.empty() && guard->n_read() == 0) {
        guard->set_prompt_probs(prompt_probs); // its sampler is reset at the end of the prompt
    }
}

//
// the way of an answer
//

void so8t_delivery::release(server_response & queue, int32_t n_tokens) {
    while (!queue_partial.empty() && queue_partial.front().n_tokens <= n_tokens) {
        sent      = true;
        has_text |= !queue_partial.front().partial->content.empty();
        n_sent    = queue_partial.front().n_tokens;
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
        first.prob_output              = {};
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
void so8t_delivery::cut(server_task_result_cmpl_final & final, int32_t n_tokens) const {
    const size_t n = std::max(0, n_tokens);
    if (n >= text_ends.size()) {
        return;
    }

    size_t n_probs = 0; // a token that ends inside a character has none
    for (size_t i = 0; i < n && !final.probs_output.empty(); ++i) {
        const size_t end   = std::min(text_ends[i], final.content.size());
        const size_t tail  = std::min<size_t>(end, 4);
        n_probs           += validate_utf8(final.content.substr(end - tail, tail)) == tail;
    }
    final.probs_output.resize(std::min(n_probs, final.probs_output.size()));
    final.tokens.resize(std::min(n, final.tokens.size()));

    final.content.resize(n == 0 ? 0 : std::min(text_ends[n - 1], final.content.size()));
    final.content.resize(validate_utf8(final.content));
}

// a trace without the text of what the client does not have: all but the first n_tokens tokens of the answer
static json so8t_shown(json trace, int32_t n_tokens) {
    for (size_t i = 0; i < trace.size(); ++i) {
        if (trace.at(i).at("part") != "prompt" && n_tokens-- <= 0) {
            trace.at(i)["id"]   = nullptr;
            trace.at(i)["text"] = "";
        }
    }
    return trace;
}

// the tokens that may be delivered, and how many the client has then; final: with the text that replaces the others
int32_t so8t_delivery::deliver(server_task_result_cmpl_final & final, server_response & queue, int32_t n_tokens) {
    if (final.stream) {
        release(queue, n_tokens);
        drop(queue);
        final.so8t.follows = has_text;
        return n_sent;
    }
    if (!final.so8t.text.empty()) {
        n_tokens = 0;
    }
    cut(final, n_tokens);
    final.so8t.follows = !final.content.empty();
    return n_tokens;
}

// null without an audit log
static json so8t_request_record(const so8t_guard & guard, const json & verdict, const std::string & id, int id_task,
    int id_slot, const std::string & prompt, int32_t n_prompt, const std::string & text, int32_t n_text) {
    auto & server = so8t_server::get();
    if (!server.audit()) {
        return nullptr;
    }
    json record = {
        {"request", id},
        {"task", id_task},
        {"slot", id_slot},
        {"model", server.model_info().at("sha256")},
        {"policy", guard.policy().sha256},
        {"mode", guard.request().judge ? "judge" : so8t_mode_name(guard.policy().mode)},
        {"prompt", server.text_record(prompt, n_prompt)},
        {"answer", server.text_record(text, n_text)},
        {"verdicts", guard.changes()},
        {"decision", verdict.at("decision")},
        {"enforced", verdict.at("enforced")},
        {"triggered", verdict.at("triggered")},
    };
    if (verdict.contains("escalation")) {
        record["escalation"] = verdict.at("escalation").at("id");
    }
    return record;
}

void so8t_delivery::finish(
    const so8t_guard * guard, server_response & queue, final_ptr && final, const std::string & streamed) {
    done         = true;
    json verdict = guard ? guard->verdict() : json(nullptr);
    if (verdict.is_null()) {
        release(queue, INT32_MAX);
        queue.send(std::move(final));
        return;
    }
    auto & server = so8t_server::get();

    const auto & outcome   = guard->outcome();
    const std::string text = final->stream ? streamed : final->content;
    const bool hold        = outcome.action == LLAMA_SO8T_ACTION_ESCALATE && server.escalations &&
                             guard->policy().escalation_wait > 0;

    so8t_answer & answer = final->so8t;
    if (guard->request().annotations) {
        answer.categories = server.categories();
    }

    so8t_escalation entry;
    if (hold) {
        entry.id              = "esc-" + random_string();
        entry.created         = std::time(nullptr);
        entry.deadline        = entry.created + guard->policy().escalation_wait;
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
    const json record   = so8t_request_record(*guard, verdict, final->oaicompat_cmpl_id, final->id, final->id_slot,
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
        auto error      = std::make_unique<server_task_result_error>();
        error->id       = final->id;
        error->index    = final->index;
        error->err_type = ERROR_TYPE_UNAVAILABLE;
        error->err_msg  = "the audit log cannot be written, so no answer is given (--so8t-audit-on-error)";
        queue.send(std::move(error));
        return;
    }

    const int32_t n_sendable = guard->n_sendable(true);
    if (!hold) {
        const int32_t n    = deliver(*final, queue, n_sendable);
        answer.close_think = guard->in_think(n);
        if (guard->request().trace) {
            verdict["trace"] = so8t_shown(guard->trace(), n);
        }
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
        so8t_guard guard; // its model may be unloaded meanwhile
        final_ptr final;
        json verdict;
        json trace;
    };
    auto state      = std::make_shared<held>();
    state->delivery = std::move(*this);
    state->guard    = *guard;
    state->trace    = guard->trace();
    state->final    = std::move(final);
    state->verdict  = verdict;

    entry.deliver = [state, n_sendable, &queue](const so8t_escalation & decided) {
        auto & guard   = state->guard;
        auto & answer  = state->final->so8t;
        auto & verdict = state->verdict;

        const bool allowed  = decided.status == SO8T_ESCALATION_ALLOWED;
        const bool denied   = decided.status == SO8T_ESCALATION_DENIED;
        const bool timeout  = decided.status == SO8T_ESCALATION_TIMEOUT;
        verdict["enforced"] = allowed ? "released" : denied ? "denied" : timeout ? "timeout" : "shutdown";
        if (!allowed) {
            const std::string why  = timeout ? string_format(" (No reviewer decided within %d s.)",
                                                   guard.policy().escalation_wait) :
                                               " (The server ended before a reviewer decided.)";
            const std::string text = denied ? guard.policy().refusal : guard.policy().escalation + why;
            answer.text            = guard.takes_text() ? text : "";
            answer.refusal         = denied || !guard.takes_text() ? text : "";
        }
        verdict["escalation"]["status"] = so8t_escalation_status_name(decided.status);
        if (!decided.reviewer.empty()) {
            verdict["escalation"]["reviewer"] = decided.reviewer;
        }
        const int32_t n    = state->delivery.deliver(*state->final, queue, allowed ? INT32_MAX : n_sendable);
        answer.close_think = guard.in_think(n);
        if (guard.request().trace) {
            verdict["trace"] = so8t_shown(std::move(state->trace), n);
        }
        answer.verdict = verdict;
        queue.send(std::move(state->final));
    };
    server.escalations->hold(std::move(entry));
    begin();
    done = true;
}

void so8t_delivery::abandon(const so8t_guard * guard, const server_task & task, int id_slot, const llama_context * ctx,
    const std::string & text) {
    i_prompt_token = -1; // of a batch that failed
    if (done || !guard || !guard->active()) {
        return;
    }
    done         = true;
    json verdict = guard->verdict();
    if (verdict.is_null()) {
        return;
    }
    auto & server = so8t_server::get();
    json record   = so8t_request_record(*guard, verdict, task.params.oaicompat_cmpl_id, task.id, id_slot,
        task.tokens.detokenize(ctx, true), task.n_tokens(), text, guard->n_generated());
    if (!record.is_null()) {
        json line;
        record["cancelled"] = true;
        server.record(record, true, line);
    }
    server.count(*guard, verdict);
}
