#include "so8t-guard.h"

#include "common.h"

#include <algorithm>
#include <cmath>

// What happens between two tokens:
//
//   decode                    the graph has computed the heads beside the logits of each output
//   common_sampler_sample     calls observe() before it samples
//     observe                 finds the part: the prompt at the first call, then the one that the last token belongs to
//       judge                 asks head after head (ask), until one refuses
//         ask                 reads the probabilities, notes the label, and applies the rule (so8t-rules.h)
//       enforce               under enforce: what may be delivered, and whether the answer ends here
//     returns the end-of-turn token where the answer ends, otherwise nothing, and the sampler goes on
//   common_sampler_accept     calls accept() with the token: it is the next to be judged, and may open or close the
//                             think block
//
// So the last token of an answer has no verdict: no token is sampled behind it.

static const size_t SO8T_N_TAIL = 4; // tokens at the end of a prompt that may hold "<think>" and white space

so8t_guard::so8t_guard(const llama_model * model, const so8t_sampling_params & params, bool has_grammar) :
    model(model),
    params(params),
    has_grammar(has_grammar) {
    for (int32_t i = 0; i < llama_so8t_n_heads(model) && active(); ++i) {
        const auto head = llama_so8t_get_head(model, i);
        if (head.prompt_token != LLAMA_TOKEN_NULL && so8t_in_scope(head.scope, true)) {
            prompt_tokens.push_back(head.prompt_token);
        }
    }
}

// a speculative draft can continue past the end-of-turn token; those tokens are not part of the answer
static bool so8t_is_end(const llama_model * model, llama_token token) {
    return token != LLAMA_TOKEN_NULL && llama_vocab_is_eog(llama_model_get_vocab(model), token);
}

void so8t_guard::begin() {
    so8t_guard fresh;
    fresh.model         = model;
    fresh.params        = std::move(params);
    fresh.has_grammar   = has_grammar;
    fresh.prompt_tokens = std::move(prompt_tokens);
    *this               = std::move(fresh);
}

//
// reading
//

void so8t_guard::read_prompt(llama_context * ctx, int32_t idx, llama_token token) {
    llama_synchronize(ctx);
    const int64_t t_start = ggml_time_us();
    read_probs.resize(llama_so8t_n_heads(model));
    for (size_t i = 0; i < read_probs.size(); ++i) {
        const auto head = llama_so8t_get_head(model, i);
        if (head.prompt_token == token) {
            read_probs[i].resize(head.n_labels);
            llama_so8t_get_probs_ith(ctx, i, idx, read_probs[i].data());
        }
    }
    seen.t_us += ggml_time_us() - t_start;
}

llama_token so8t_guard::observe(llama_context * ctx, int32_t idx) {
    if (!active()) {
        return LLAMA_TOKEN_NULL;
    }
    if (so8t_is_end(model, last_token)) {
        return stop ? params.policy->eog : LLAMA_TOKEN_NULL;
    }
    const int64_t t_start = ggml_time_us();
    judge(seen.n_read == 0 && n_accepted == 0 ? SO8T_PART_PROMPT : last_part, ctx, idx);
    seen.n_read++;
    seen.t_us += ggml_time_us() - t_start;

    stop = outcome.action == LLAMA_SO8T_ACTION_REFUSE ||
           (outcome.action == LLAMA_SO8T_ACTION_ESCALATE && params.policy->escalation_wait == 0);
    return stop ? params.policy->eog : LLAMA_TOKEN_NULL;
}

void so8t_guard::judge(so8t_part i_part, llama_context * ctx, int32_t idx) {
    auto & part = seen.parts[i_part];
    if (part.n_positions == 0) {
        const size_t n_heads = params.policy->heads.size();
        runs[i_part].start   = i_part == SO8T_PART_PROMPT ? 0 : n_accepted - 1;
        runs[i_part].heads.resize(n_heads);
        part.heads.resize(n_heads);
    }
    begin_trace(i_part);

    const int32_t position = part.n_positions;
    const so8t_found found = so8t_judge(
        part.heads.size(), [&](int32_t head) { return params.policy->heads[head].depends_on; },
        [&](int32_t head) { return ask(i_part, head, ctx, idx); });
    if (found.action > seen.triggered.action) {
        const float p  = found.label < 0 ? NAN : part.heads[found.head].probs[found.label];
        seen.triggered = {found.action, i_part, position, found.head, found.label, p};
    }
    enforce(i_part, position, found);
    part.action = std::max(part.action, found.action);
    part.n_positions++;
    if (i_part == SO8T_PART_PROMPT && params.turns) {
        judge_turns();
    }
    if (i_part == SO8T_PART_PROMPT && params.judging) {
        read_unasked(ctx, idx);
    }
}

// who has a text judged may want the values of every head, whatever the rule makes of them
void so8t_guard::read_unasked(llama_context * ctx, int32_t idx) {
    const auto & heads = seen.parts[SO8T_PART_PROMPT].heads;
    seen.unasked.resize(heads.size());
    std::vector<bool> acts(heads.size(), false); // of those that were not asked
    for (size_t i = 0; i < heads.size(); ++i) {
        const so8t_policy::head & rule = params.policy->heads[i];
        const bool has_place           = rule.depends_on < 0 || acts[rule.depends_on];
        if (heads[i].probs.empty() && so8t_in_scope(rule.scope, true) && has_place) {
            acts[i] = judge_prompt(i, ctx, idx, seen.unasked[i]).acts;
        }
    }
}

// probabilities of one head at the end of the prompt
void so8t_guard::read_prompt_end(int32_t i_head, llama_context * ctx, int32_t idx, std::vector<float> & probs) const {
    if (i_head < (int32_t) read_probs.size() && !read_probs[i_head].empty()) {
        probs = read_probs[i_head];
        return;
    }
    probs.resize(params.policy->heads[i_head].labels.size());
    llama_so8t_get_probs_ith(ctx, i_head, idx, probs.data());
}

// texts of the prompt; where nobody can find them, a program reads one sequence, whose newest tokens are the prompt
std::vector<so8t_text_span> so8t_guard::prompt_texts(llama_context * ctx) const {
    if (params.policy->texts->find) {
        return params.policy->texts->find(prompt);
    }
    const int32_t end = llama_memory_seq_pos_max(llama_get_memory(ctx), 0) + 1;
    return so8t_text_windows(std::max(0, end - n_prompt), end);
}

// how far the most probable of the labels that act is above its threshold
static float so8t_margin(const so8t_head_rule & rule, const std::vector<float> & probs) {
    float margin = -INFINITY;
    for (size_t i = 0; i < probs.size(); ++i) {
        if (rule.actions[i] != LLAMA_SO8T_ACTION_ALLOW) {
            const float threshold = rule.rule == LLAMA_SO8T_RULE_ARGMAX ? 0.0f : rule.thresholds[i];
            margin                = std::max(margin, std::isfinite(probs[i]) ? probs[i] - threshold : INFINITY);
        }
    }
    return margin;
}

// one head in the prompt: in each of its ways over each text, of which the strongest counts
so8t_found so8t_guard::judge_prompt(
    int32_t i_head, llama_context * ctx, int32_t idx, so8t_head_verdict & result) const {
    const so8t_policy::head & rule = params.policy->heads[i_head];
    const size_t n_labels          = rule.labels.size();
    so8t_head_rule way             = rule;
    so8t_found strongest;
    float margin = 0;
    bool acts    = false;
    result.reached.assign(n_labels, false);

    const auto judge_one = [&](size_t i_way, const std::vector<float> & probs) {
        way.thresholds.assign(
            rule.prompt_thresholds.begin() + i_way * n_labels, rule.prompt_thresholds.begin() + (i_way + 1) * n_labels);
        so8t_head_run run;
        const so8t_found found = so8t_judge_head(way, true, 0, probs.data(), run);
        for (size_t i = 0; i < n_labels && rule.fitted; ++i) {
            result.reached[i] = result.reached[i] || run.holds[i] || !std::isfinite(probs[i]);
        }
        acts                = acts || found.acts;
        const float here    = so8t_margin(way, probs);
        const bool is_first = result.probs.empty();
        if (is_first || found.action > strongest.action || (found.action == strongest.action && here > margin)) {
            strongest              = found;
            margin                 = here;
            result.probs           = probs;
            result.aggregation     = rule.reads_texts() ? (int32_t) i_way : -1;
            result.triggered_label = so8t_first_label(way, true, run);
        }
    };
    const auto texts = rule.reads_texts() ? prompt_texts(ctx) : std::vector<so8t_text_span>();
    std::vector<float> probs(n_labels);
    for (size_t i_way = 0; i_way < rule.prompt_aggregations.size(); ++i_way) {
        if (rule.prompt_aggregations[i_way] == LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN) {
            read_prompt_end(i_head, ctx, idx, probs);
            judge_one(i_way, probs);
            continue;
        }
        for (const so8t_text_span & text : texts) {
            llama_so8t_get_text_probs(ctx, i_head, i_way, idx, text.begin, text.end, probs.data());
            judge_one(i_way, probs);
        }
    }
    result.triggered_position = result.triggered_label < 0 ? -1 : 0;
    strongest.acts            = acts;
    return strongest;
}

// probabilities of one head at the next position of an answer, aggregated with those before it
void so8t_guard::read_answer(
    so8t_part i_part, int32_t i_head, llama_context * ctx, int32_t idx, std::vector<float> & probs) {
    const so8t_policy::head & rule = params.policy->heads[i_head];
    const std::vector<float> none(rule.labels.size(), NAN);
    const float * logits = llama_so8t_get_logits_ith(ctx, i_head, idx);
    probs.resize(rule.labels.size());
    so8t_aggregate(rule, logits ? logits : none.data(), runs[i_part].heads[i_head], probs.data());
}

// what was read of the prompt besides its last token
void so8t_guard::judge_turns() {
    seen.turns = *params.turns;
    for (size_t i = 0; i < seen.turns.size(); ++i) {
        const so8t_trigger & triggered = seen.turns[i].triggered;
        if (seen.turns[i].noted) {
            continue;
        }
        if (triggered.action > seen.triggered.action) {
            seen.triggered         = triggered;
            seen.triggered.part    = SO8T_PART_PROMPT;
            seen.triggered.reading = i;
        }
        so8t_found found;
        found.action = triggered.action;
        enforce(SO8T_PART_PROMPT, 0, found);
    }
}

so8t_found so8t_guard::ask(so8t_part i_part, int32_t i_head, llama_context * ctx, int32_t idx) {
    const so8t_policy::head & rule = params.policy->heads[i_head];
    const bool is_prompt           = i_part == SO8T_PART_PROMPT;
    if (!so8t_in_scope(rule.scope, is_prompt)) {
        return {};
    }
    auto & head            = seen.parts[i_part].heads[i_head];
    const int32_t position = seen.parts[i_part].n_positions;
    const bool is_first    = head.probs.empty();
    head.peak.resize(rule.labels.size(), 0.0f);
    head.reached.resize(rule.labels.size());

    so8t_found found;
    if (is_prompt) {
        found = judge_prompt(i_head, ctx, idx, head);
    } else {
        read_answer(i_part, i_head, ctx, idx, head.probs);
    }
    const int32_t label = so8t_largest(head.probs.data(), head.probs.size());
    const bool finite   = label >= 0;
    if (seen.trace) {
        seen.trace->back().probs[i_head] = head.probs;
    }
    if (is_first || label != head.label) {
        seen.changes.push_back({i_part, position, i_head, label, head.probs});
    }
    head.label = label;
    for (size_t i = 0; i < head.probs.size() && finite; ++i) {
        head.peak[i] = std::max(head.peak[i], head.probs[i]);
    }
    if (is_prompt) {
        return found;
    }
    auto & run = runs[i_part].heads[i_head];
    found      = so8t_judge_head(rule, false, position, head.probs.data(), run);
    for (size_t i = 0; i < run.holds.size() && rule.fitted; ++i) {
        head.reached[i] = head.reached[i] || run.holds[i] || !finite;
    }
    if (head.triggered_label < 0) {
        head.triggered_label    = so8t_first_label(rule, false, run);
        head.triggered_position = head.triggered_label < 0 ? -1 : position;
    }
    return found;
}

void so8t_guard::begin_trace(so8t_part part) {
    if (!params.trace) {
        return;
    }
    const bool is_prompt = part == SO8T_PART_PROMPT;

    so8t_traced_token token;
    token.part     = part;
    token.position = is_prompt ? std::max(0, n_prompt - 1) : seen.parts[part].n_positions;
    token.id       = is_prompt ? think.last_of_prompt() : last_token;
    if (token.id != LLAMA_TOKEN_NULL) {
        token.text = common_token_to_piece(llama_model_get_vocab(model), token.id, true);
    }
    token.probs.resize(params.policy->heads.size());
    if (!seen.trace) {
        seen.trace.emplace();
    }
    seen.trace->push_back(std::move(token));
}

void so8t_guard::enforce(so8t_part part, int32_t position, const so8t_found & found) {
    if (params.judging || found.action <= outcome.action || !params.policy->enforces(part == SO8T_PART_THINK)) {
        return;
    }
    outcome.action        = found.action;
    outcome.n_deliverable = std::min(
        outcome.n_deliverable, part == SO8T_PART_PROMPT ? 0 : runs[part].start + position - found.n_run + 1);
}

//
// tokens
//

void so8t_guard::accept(llama_token token, bool is_generated) {
    if (!active()) {
        return;
    }
    if (is_generated) {
        if (so8t_is_end(model, last_token)) {
            return;
        }
        last_part  = think.accept(llama_model_get_vocab(model), token, n_accepted);
        last_token = token;
        n_accepted++;
        return;
    }
    if (seen.n_read > 0) {
        begin(); // the next turn of a conversation
    }
    n_prompt++;
    if (params.policy->reads_texts()) {
        prompt.push_back(token);
    }
    think.accept_prompt(token);
}

void so8t_think_block::accept_prompt(llama_token token) {
    if (tail.size() == SO8T_N_TAIL) {
        tail.erase(tail.begin());
    }
    tail.push_back(token);
}

so8t_part so8t_think_block::accept(const llama_vocab * vocab, llama_token token, int32_t number) {
    if (number == 0) {
        std::string prompt;
        for (const llama_token t : tail) {
            prompt += common_token_to_piece(vocab, t, true);
        }
        if (string_ends_with(string_strip(prompt), "<think>")) {
            state = OPEN;
            begin = 0;
        }
    }
    if (state == DONE) {
        return SO8T_PART_ANSWER;
    }
    const std::string text = string_strip(common_token_to_piece(vocab, token, true));
    if (state == POSSIBLE && !text.empty()) {
        state = text == "<think>" ? OPEN : DONE;
        begin = state == OPEN ? number + 1 : begin;
    }
    if (state != OPEN) {
        return SO8T_PART_ANSWER;
    }
    if (text == "</think>") {
        state = DONE;
        end   = number + 1;
    }
    return SO8T_PART_THINK;
}

//
// what follows
//

// the last token of an answer has no verdict: whether it could have been the last one of a run that triggers
bool so8t_guard::last_can_trigger() const {
    if (so8t_is_end(model, last_token) || !params.policy->enforces(last_part == SO8T_PART_THINK)) {
        return false;
    }
    const auto & heads = params.policy->heads;
    const auto & run   = runs[last_part].heads; // empty where it is the first token of its part
    for (size_t i = 0; i < heads.size(); ++i) {
        if (so8t_can_trigger(heads[i], i < run.size() ? run[i] : so8t_head_run())) {
            return true;
        }
    }
    return false;
}

int32_t so8t_guard::n_sendable(bool is_final) const {
    if (!active() || params.judging || params.policy->mode != SO8T_MODE_ENFORCE) {
        return INT32_MAX;
    }
    const int32_t n_judged = std::max(0, seen.n_read - 1);
    const int32_t holdback = params.policy->holdback;
    if (holdback == 0) {
        return outcome.n_deliverable;
    }
    if (is_final) {
        return std::min(outcome.n_deliverable, last_can_trigger() ? n_judged : INT32_MAX);
    }
    return std::min(outcome.n_deliverable, std::max(0, n_judged - holdback + 1));
}

so8t_enforced so8t_guard::enforced() const {
    switch (outcome.action) {
        case LLAMA_SO8T_ACTION_ALLOW:    return SO8T_ENFORCED_NONE;
        case LLAMA_SO8T_ACTION_ESCALATE: return has_grammar ? SO8T_ENFORCED_STOP : SO8T_ENFORCED_ESCALATION;
        case LLAMA_SO8T_ACTION_REFUSE:
            return has_grammar || params.policy->on_refuse == SO8T_ON_REFUSE_STOP ? SO8T_ENFORCED_STOP :
                                                                                    SO8T_ENFORCED_MESSAGE;
    }
    return SO8T_ENFORCED_STOP;
}

std::string so8t_guard::text() const {
    const so8t_enforced how = active() ? enforced() : SO8T_ENFORCED_NONE;
    return how == SO8T_ENFORCED_MESSAGE    ? params.policy->refusal :
           how == SO8T_ENFORCED_ESCALATION ? params.policy->escalation :
                                             "";
}

std::optional<so8t_verdict> so8t_guard::verdict() const {
    if (!active() || seen.n_read == 0) {
        return std::nullopt;
    }
    so8t_verdict verdict = seen;
    verdict.policy       = params.policy;
    verdict.enforced     = enforced();
    return verdict;
}
