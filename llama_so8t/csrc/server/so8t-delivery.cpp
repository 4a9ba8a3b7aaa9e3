#include "so8t-delivery.h"

#include "server-common.h"

#include <algorithm>
#include <optional>
#include <utility>

// The way of an answer, in the thread of the slots unless it says otherwise:
//
//   begin         the slot takes a request
//   read_prompt   while the prompt is evaluated, the heads with a prompt_token are read
//   send          each part of a stream: it waits here until the guard has judged its tokens (n_sendable)
//   finish        the end of the answer: its verdict gets what was enforced, a line in the audit log and in the counters;
//                 where that line has to be written and cannot be, the client gets an error instead of the answer
//     send_final  at once: what may be delivered, cut behind the last such token, and the text that replaces the rest
//     hold        or, where a person is to decide, later: the slot is free and the client waits; the thread of the
//                 reviewer's request, or the timer's, calls send_final, or send_edited. A client that repeats its request
//                 meanwhile joins: it gets a copy of all that was sent and of all that is
//   abandon       or the client goes away before: only the line and the counters are left
//
// The result goes to the queue with its verdict; so8t_answer_format() makes it the answer of an endpoint (HTTP thread).

void so8t_delivery::begin(so8t_server & server, const std::map<int, float> & lora) {
    *this        = {};
    this->server = &server;
    this->lora   = lora;
    done         = false;
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

template <typename Result>
static std::unique_ptr<Result> so8t_copy(const Result & result, int id_task) {
    auto copy = std::make_unique<Result>(result);
    copy->id  = id_task;
    return copy;
}

// to the client, and to those who have joined it
template <typename Result>
void so8t_delivery::post(server_response & queue, std::unique_ptr<Result> && result) const {
    for (const int id_task : joined) {
        queue.send(so8t_copy(*result, id_task));
    }
    queue.send(std::move(result));
}

void so8t_delivery::keep(const server_task_result_cmpl_partial & partial) {
    if (server->escalations()) {
        kept.push_back(so8t_copy(partial, partial.id));
    }
}

std::string so8t_delivery::sent_text() const {
    std::string text;
    for (const auto & partial : kept) {
        text += partial->content;
    }
    return text;
}

void so8t_delivery::release(server_response & queue, int32_t n_tokens) {
    while (!queue_partial.empty() && queue_partial.front().n_tokens <= n_tokens) {
        sent      = true;
        has_text |= !queue_partial.front().partial->content.empty();
        n_sent    = queue_partial.front().n_tokens;
        keep(*queue_partial.front().partial);
        post(queue, std::move(queue_partial.front().partial));
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
    const bool judged = guard && guard->active();
    if (!judged || partial->is_begin || partial->is_progress) {
        if (judged && partial->is_begin) {
            keep(*partial);
        }
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

// Releases up to n_tokens tokens, puts the replacement text into `final`, and returns how many tokens the client has.
int32_t so8t_delivery::deliver(server_task_result_cmpl_final & final, server_response & queue, int32_t n_tokens) {
    if (final.stream) {
        release(queue, n_tokens);
        drop(queue);
        final.so8t_answer.follows = has_text;
        return n_sent;
    }
    if (!final.so8t_answer.text.empty()) {
        n_tokens = 0;
    }
    cut(final, n_tokens);
    final.so8t_answer.follows = !final.content.empty();
    return n_tokens;
}

// sends the end of an answer of which n_tokens tokens may be delivered
void so8t_delivery::send_final(
    const so8t_guard & guard, server_response & queue, final_ptr && final, so8t_verdict && verdict, int32_t n_tokens) {
    const int32_t n                = deliver(*final, queue, n_tokens);
    final->so8t_answer.close_think = guard.in_think(n);
    verdict.hide_text(n);
    final->so8t_answer.verdict = std::move(verdict);
    post(queue, std::move(final));
}

// sends a text in place of the answer, as if the model had written it: in a stream the part that was not sent
void so8t_delivery::send_edited(const so8t_guard & guard, server_response & queue, final_ptr && final,
    so8t_verdict && verdict, const std::string & text) {
    if (final->stream) {
        drop(queue);
        if (!kept.empty()) {
            auto rest         = so8t_copy(*kept.back(), final->id);
            rest->content     = text.substr(sent_text().size());
            rest->is_begin    = false;
            rest->n_decoded   = sent ? n_sent + 1 : 1; // the first event of a stream begins it
            rest->prob_output = {};
            rest->tokens.clear();
            post(queue, std::move(rest));
        }
    } else {
        final->content = text;
        final->tokens.clear();
        final->probs_output.clear();
    }
    final->so8t_answer.close_think = guard.in_think(n_sent);
    verdict.hide_text(n_sent);
    final->so8t_answer.verdict = std::move(verdict);
    post(queue, std::move(final));
}

void so8t_delivery::send_unavailable(server_response & queue, const server_task_result_cmpl_final & final) {
    queue_partial.clear();
    auto error      = std::make_unique<server_task_result_error>();
    error->id       = final.id;
    error->index    = final.index;
    error->err_type = ERROR_TYPE_UNAVAILABLE;
    error->err_msg  = "the audit log cannot be written, so no answer is given (--so8t-audit-on-error)";
    queue.send(std::move(error));
}

// the texts of an answer that nobody has to decide about
static void so8t_replace(so8t_answer & answer, const so8t_guard & guard) {
    answer.text = guard.text();
    if (guard.action() == LLAMA_SO8T_ACTION_REFUSE) {
        answer.refusal = guard.policy().refusal;
    } else if (guard.action() == LLAMA_SO8T_ACTION_ESCALATE && answer.text.empty()) {
        answer.refusal = guard.policy().escalation;
    }
}

void so8t_delivery::finish(
    const so8t_guard * guard, server_response & queue, final_ptr && final, const std::string & streamed) {
    done         = true;
    auto verdict = guard ? guard->verdict() : std::nullopt;
    if (!verdict) {
        release(queue, INT32_MAX);
        queue.send(std::move(final));
        return;
    }
    const std::string text = final->stream ? streamed : final->content;
    const bool is_held     = guard->action() == LLAMA_SO8T_ACTION_ESCALATE && server->escalations();

    final->so8t_answer.annotations = guard->request().annotations;
    final->so8t_answer.has_form    = !guard->takes_text();
    if (is_held) {
        verdict->enforced   = SO8T_ENFORCED_HELD;
        verdict->escalation = {server->escalations()->new_id(), SO8T_ESCALATION_PENDING, ""};
    } else {
        so8t_replace(final->so8t_answer, *guard);
    }

    so8t_request_record record;
    record.id       = final->oaicompat_cmpl_id;
    record.id_task  = final->id;
    record.id_slot  = final->id_slot;
    record.prompt   = final->prompt;
    record.n_prompt = final->n_prompt_tokens;
    record.answer   = text;
    record.n_answer = final->n_decoded;
    record.messages = guard->request().messages;
    record.lora     = lora;

    const bool durable  = verdict->decision() != LLAMA_SO8T_ACTION_ALLOW;
    const bool recorded = server->record(record, *verdict, durable, verdict->audit);
    verdict->enforced   = recorded ? verdict->enforced : SO8T_ENFORCED_UNAVAILABLE;
    server->count(*verdict, record);
    server->remember(guard->request(), *verdict, text);

    if (!recorded) {
        send_unavailable(queue, *final);
    } else if (is_held) {
        hold(*guard, queue, std::move(final), std::move(*verdict), text);
    } else {
        send_final(*guard, queue, std::move(final), std::move(*verdict), guard->n_sendable(true));
    }
}

//
// until a person decides: the slot is free, the client waits
//

struct so8t_delivery::held_answer : so8t_held_answer {
    held_answer(so8t_delivery && delivery, const so8t_guard & guard, server_response & queue) :
        delivery(std::move(delivery)),
        guard(guard),
        queue(queue) {}

    so8t_delivery delivery;
    so8t_guard guard; // its model may be unloaded meanwhile
    server_response & queue;
    final_ptr final;
    so8t_verdict verdict;
    int32_t n_sendable = 0; // by the guard's rules

    void join(int id_task) override;
    void deliver(const so8t_escalation & decided) override;
    void refuse(so8t_escalation_status status);
};

static so8t_enforced so8t_enforced_by(so8t_escalation_status status) {
    switch (status) {
        case SO8T_ESCALATION_PENDING:
        case SO8T_ESCALATION_GONE:      return SO8T_ENFORCED_HELD;
        case SO8T_ESCALATION_ALLOWED:   return SO8T_ENFORCED_RELEASED;
        case SO8T_ESCALATION_EDITED:    return SO8T_ENFORCED_EDITED;
        case SO8T_ESCALATION_DENIED:    return SO8T_ENFORCED_DENIED;
        case SO8T_ESCALATION_TIMEOUT:   return SO8T_ENFORCED_TIMEOUT;
        case SO8T_ESCALATION_SHUTDOWN:  return SO8T_ENFORCED_SHUTDOWN;
        case SO8T_ESCALATION_CANCELLED: return SO8T_ENFORCED_HELD;
    }
    return SO8T_ENFORCED_HELD;
}

void so8t_delivery::hold(const so8t_guard & guard, server_response & queue, final_ptr && final, so8t_verdict && verdict,
    const std::string & text) {
    so8t_escalation entry;
    entry.id        = verdict.escalation->id;
    entry.prompt    = final->prompt;
    entry.question  = server->question_of(final->prompt);
    entry.answer    = text;
    entry.sent      = sent_text();
    entry.editable  = guard.takes_text();
    entry.triggered = verdict.triggered_json();

    so8t_escalations & escalations = *server->escalations();
    const int id_task              = final->id;

    auto held        = std::make_unique<held_answer>(std::move(*this), guard, queue);
    held->final      = std::move(final);
    held->verdict    = std::move(verdict);
    held->n_sendable = guard.n_sendable(true);
    *this            = {};
    escalations.hold(std::move(entry), id_task, guard.policy().escalation_wait, std::move(held));
}

void so8t_delivery::held_answer::join(int id_task) {
    for (const auto & partial : delivery.kept) {
        queue.send(so8t_copy(*partial, id_task));
    }
    delivery.joined.push_back(id_task);
}

void so8t_delivery::held_answer::deliver(const so8t_escalation & decided) {
    const bool allowed           = decided.status == SO8T_ESCALATION_ALLOWED;
    verdict.enforced             = so8t_enforced_by(decided.status);
    verdict.escalation->status   = decided.status;
    verdict.escalation->reviewer = decided.reviewer;
    if (decided.status == SO8T_ESCALATION_EDITED) {
        delivery.send_edited(guard, queue, std::move(final), std::move(verdict), decided.text);
        return;
    }
    if (!allowed) {
        refuse(decided.status);
    }
    delivery.send_final(guard, queue, std::move(final), std::move(verdict), allowed ? INT32_MAX : n_sendable);
}

void so8t_delivery::held_answer::refuse(so8t_escalation_status status) {
    const bool denied     = status == SO8T_ESCALATION_DENIED;
    const std::string why = status == SO8T_ESCALATION_TIMEOUT ?
                                string_format(" (No reviewer decided within %g s.)", guard.policy().escalation_wait) :
                                " (The server ended before a reviewer decided.)";

    const std::string text     = denied ? guard.policy().refusal : guard.policy().escalation + why;
    final->so8t_answer.text    = guard.takes_text() ? text : "";
    final->so8t_answer.refusal = denied || !guard.takes_text() ? text : "";
}

//
// no end
//

void so8t_delivery::abandon(const so8t_guard * guard, const server_task & task, int id_slot, const llama_context * ctx,
    const std::string & text) {
    i_prompt_token = -1; // of a batch that failed
    if (done || !guard || !guard->active()) {
        return;
    }
    done         = true;
    auto verdict = guard->verdict();
    if (!verdict) {
        return;
    }
    so8t_request_record record;
    record.id        = task.params.oaicompat_cmpl_id;
    record.id_task   = task.id;
    record.id_slot   = id_slot;
    record.cancelled = true;

    if (server->audit()) {
        record.prompt   = task.tokens.detokenize(ctx, true);
        record.n_prompt = task.n_tokens();
        record.answer   = text;
        record.n_answer = guard->n_generated();
        record.messages = guard->request().messages;
        record.lora     = lora;
        server->record(record, *verdict, true, verdict->audit);
    }
    server->count(*verdict, record);
}
