#include "so8t-guard.h"

#include "so8t-policy-settings.h"

#include "common.h"
#include "json.h"

#include <algorithm>
#include <cmath>

static const char * const SO8T_PART_NAMES[SO8T_N_PARTS] = {"prompt", "think", "answer"};

static const size_t SO8T_N_TAIL = 4; // tokens at the end of a prompt that may hold "<think>" and white space

so8t_guard::so8t_guard(const llama_model * model, const so8t_sampling_params & params, bool has_grammar) :
    model(model),
    params(params),
    has_grammar(has_grammar) {
    if (params.judge) {
        // text of a client, so no special tokens in it
        forced = common_tokenize(llama_model_get_vocab(model), params.judged, false, false);
    }
    for (int32_t i = 0; i < llama_so8t_n_heads(model) && active(); ++i) {
        const auto head = llama_so8t_get_head(model, i);
        if (head.prompt_token != LLAMA_TOKEN_NULL && (head.scope & LLAMA_SO8T_SCOPE_PROMPT)) {
            prompt_tokens.push_back(head.prompt_token);
        }
    }
}

// a draft may go on behind the end of an answer: what stands there is no part of it
static bool so8t_is_end(const llama_model * model, llama_token token) {
    return token != LLAMA_TOKEN_NULL && llama_vocab_is_eog(llama_model_get_vocab(model), token);
}

void so8t_guard::begin() {
    so8t_guard fresh;
    fresh.model         = model;
    fresh.params        = std::move(params);
    fresh.has_grammar   = has_grammar;
    fresh.forced        = std::move(forced);
    fresh.prompt_tokens = std::move(prompt_tokens);
    *this               = std::move(fresh);
}

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
    t_observe_us += ggml_time_us() - t_start;
}

llama_token so8t_guard::observe(llama_context * ctx, int32_t idx) {
    if (!active()) {
        return LLAMA_TOKEN_NULL;
    }
    if (so8t_is_end(model, last_token)) {
        return stop ? params.policy->eog : LLAMA_TOKEN_NULL;
    }
    const int64_t t_start = ggml_time_us();
    observe(n_observed == 0 ? SO8T_PART_PROMPT : last_part, ctx, idx);
    n_observed++;
    t_observe_us += ggml_time_us() - t_start;

    if (params.judge) {
        return n_accepted < (int32_t) forced.size() ? forced[n_accepted] : params.policy->eog;
    }
    stop = result.action == LLAMA_SO8T_ACTION_REFUSE ||
           (result.action == LLAMA_SO8T_ACTION_ESCALATE && params.policy->escalation_wait == 0);
    return stop ? params.policy->eog : LLAMA_TOKEN_NULL;
}

void so8t_guard::observe(so8t_part i_part, llama_context * ctx, int32_t idx) {
    auto & part = parts[i_part];
    if (part.n_positions == 0) {
        part.start = i_part == SO8T_PART_PROMPT ? 0 : n_accepted - 1;
    }
    const auto scope   = i_part == SO8T_PART_PROMPT ? LLAMA_SO8T_SCOPE_PROMPT : LLAMA_SO8T_SCOPE_ANSWER;
    const auto n_heads = llama_so8t_n_heads(model);
    part.heads.resize(n_heads);

    if (params.trace) {
        const llama_token token = i_part == SO8T_PART_PROMPT ? (tail.empty() ? LLAMA_TOKEN_NULL : tail.back()) :
                                                               last_token;
        readings.push_back(
            {i_part, i_part == SO8T_PART_PROMPT ? std::max(0, n_prompt - 1) : part.n_positions, -1, token, {}});
    }

    // refuse > escalate > allow: after a refusal no other head is consulted
    trigger strongest;
    for (int32_t i_head = 0; i_head < n_heads && strongest.action != LLAMA_SO8T_ACTION_REFUSE; ++i_head) {
        const auto head = llama_so8t_get_head(model, i_head);
        if (!(head.scope & scope)) {
            continue;
        }
        auto & state = part.heads[i_head];
        state.probs.resize(head.n_labels);
        state.peak.resize(head.n_labels, 0.0f);
        state.n_above.resize(head.n_labels, 0);

        if (i_part == SO8T_PART_PROMPT && i_head < (int32_t) read_probs.size() && !read_probs[i_head].empty()) {
            state.probs = read_probs[i_head];
        } else {
            llama_so8t_get_probs_ith(ctx, i_head, idx, state.probs.data());
        }
        const bool finite  = std::isfinite(state.probs[0]); // all of them are, or none
        const int32_t best = finite ? std::max_element(state.probs.begin(), state.probs.end()) - state.probs.begin() :
                                      -1;
        if (params.trace) {
            readings.push_back({i_part, part.n_positions, i_head, best, state.probs});
        }
        if (best != state.best) {
            state.best = best;
            log.push_back({i_part, part.n_positions, i_head, best, state.probs});
        }

        if (!finite) { // fail closed
            strongest = {LLAMA_SO8T_ACTION_REFUSE, i_part, part.n_positions, i_head, -1, NAN, 1};
            state.n_above.assign(head.n_labels, 0);
        }
        const auto & policy    = params.policy->heads[i_head];
        const int32_t debounce = i_part == SO8T_PART_PROMPT ? 1 : policy.debounce;
        for (int32_t i = 0; i < head.n_labels && finite; ++i) {
            const auto action = llama_so8t_get_label(model, i_head, i).action;
            state.peak[i]     = std::max(state.peak[i], state.probs[i]);
            state.n_above[i]  = state.probs[i] >= policy.thresholds[i] ? state.n_above[i] + 1 : 0;
            if (state.n_above[i] < debounce || action == LLAMA_SO8T_ACTION_ALLOW) {
                continue;
            }
            if (action > strongest.action) {
                strongest = {action, i_part, part.n_positions, i_head, i, state.probs[i], debounce};
            }
            if (state.label < 0) {
                state.position = part.n_positions;
                state.label    = i;
            }
        }
    }
    if (strongest.action > first.action) {
        first = strongest;
    }
    enforce(i_part, strongest);
    part.action = std::max(part.action, strongest.action);
    part.n_positions++;
}

void so8t_guard::enforce(so8t_part part, const trigger & found) {
    if (params.judge || found.action <= result.action || !params.policy->enforces(part == SO8T_PART_THINK)) {
        return;
    }
    result.action        = found.action;
    result.n_deliverable = std::min(
        result.n_deliverable, part == SO8T_PART_PROMPT ? 0 : parts[part].start + found.position - found.n_run + 1);
}

void so8t_guard::accept(llama_token token, bool is_generated) {
    if (!active()) {
        return;
    }
    if (is_generated) {
        if (so8t_is_end(model, last_token)) {
            return;
        }
        follow(token);
        last_token = token;
        n_accepted++;
        return;
    }
    if (n_observed > 0) {
        begin(); // the next turn of a conversation
    }
    n_prompt++;
    if (tail.size() == SO8T_N_TAIL) {
        tail.erase(tail.begin());
    }
    tail.push_back(token);
}

// a block is open if the prompt ends with <think> or the answer begins with it, and is over with </think>: its
// tags belong to it, and an answer cannot open another one to be judged by the rules of thinking
void so8t_guard::follow(llama_token token) {
    const auto is_space = [](const std::string & text) { return string_strip(text).empty(); };

    const llama_vocab * vocab = llama_model_get_vocab(model);
    if (n_accepted == 0) {
        std::string prompt;
        for (const llama_token t : tail) {
            prompt += common_token_to_piece(vocab, t, true);
        }
        if (string_ends_with(string_strip(prompt), "<think>")) {
            think       = THINK_OPEN;
            think_begin = 0;
        }
    }
    last_part = SO8T_PART_ANSWER;
    if (think == THINK_DONE) {
        return;
    }
    const std::string text = common_token_to_piece(vocab, token, true);
    if (think == THINK_POSSIBLE && !is_space(text)) {
        think = string_strip(text) == "<think>" ? THINK_OPEN : THINK_DONE;
        if (think == THINK_OPEN) {
            think_begin = n_accepted + 1;
        }
    }
    if (think == THINK_OPEN) {
        last_part = SO8T_PART_THINK;
        if (string_strip(text) == "</think>") {
            think     = THINK_DONE;
            think_end = n_accepted + 1;
        }
    }
}

bool so8t_guard::in_think(int32_t n_tokens) const {
    return think_begin <= n_tokens && n_tokens < think_end;
}

int32_t so8t_guard::n_sendable(bool is_final) const {
    if (!active() || params.judge || params.policy->mode != SO8T_MODE_ENFORCE) {
        return INT32_MAX;
    }
    const int32_t n_judged = std::max(0, n_observed - 1);
    const int32_t holdback = params.policy->holdback;
    if (holdback == 0) {
        return result.n_deliverable;
    }
    if (is_final) { // the end of the answer itself needs no verdict
        return std::min(result.n_deliverable, so8t_is_end(model, last_token) ? INT32_MAX : n_judged);
    }
    return std::min(result.n_deliverable, std::max(0, n_judged - holdback + 1));
}

llama_so8t_action so8t_guard::decision() const {
    return first.action;
}

const char * so8t_guard::enforced() const {
    switch (result.action) {
        case LLAMA_SO8T_ACTION_ALLOW:    return "none";
        case LLAMA_SO8T_ACTION_ESCALATE: return has_grammar ? "stop" : "escalation";
        case LLAMA_SO8T_ACTION_REFUSE:
            return has_grammar || params.policy->on_refuse == SO8T_ON_REFUSE_STOP ? "stop" : "message";
    }
    return "?";
}

std::string so8t_guard::text() const {
    const std::string how = active() ? enforced() : "none";
    return how == "message" ? params.policy->refusal : how == "escalation" ? params.policy->escalation : "";
}

//
// JSON
//

std::string so8t_guard::label_name(int32_t head, int32_t label) const {
    return label < 0 ? "not finite" : llama_so8t_get_label(model, head, label).name;
}

common_json so8t_guard::probabilities(int32_t head, const std::vector<float> & values) const {
    common_json json = common_json::object();
    for (size_t i = 0; i < values.size(); ++i) {
        const char * name = llama_so8t_get_label(model, head, i).name;
        if (std::isfinite(values[i])) {
            json[name] = so8t_short(values[i]);
        } else {
            json[name] = nullptr;
        }
    }
    return json;
}

common_json so8t_guard::part_json(so8t_part i_part) const {
    const auto & part = parts[i_part];

    common_json json = common_json::object();
    json["action"]   = llama_so8t_action_name(part.action);
    if (i_part != SO8T_PART_PROMPT) {
        json["n_positions"] = part.n_positions;
    }
    common_json heads = common_json::object();
    for (size_t i = 0; i < part.heads.size(); ++i) {
        const auto & state = part.heads[i];
        if (state.probs.empty()) {
            continue;
        }
        common_json head      = common_json::object();
        head["label"]         = label_name(i, state.best);
        head["probabilities"] = probabilities(i, state.probs);
        if (i_part != SO8T_PART_PROMPT) {
            head["peak"]      = probabilities(i, state.peak);
            head["triggered"] = nullptr;
            if (state.label >= 0) {
                head["triggered"] = common_json::object({
                    {"position", state.position},
                    {"label", label_name(i, state.label)},
                });
            }
        }
        heads[llama_so8t_get_head(model, i).name] = head;
    }
    json["heads"] = heads;
    return json;
}

common_json so8t_guard::trace() const {
    if (!params.trace) {
        return nullptr;
    }
    common_json json = common_json::array();
    for (const auto & r : readings) {
        if (r.head < 0) {
            json.push_back({
                {"part", SO8T_PART_NAMES[r.part]},
                {"position", r.position},
                {"id", r.label},
                {"text", r.label == LLAMA_TOKEN_NULL ?
                             "" :
                             common_token_to_piece(llama_model_get_vocab(model), r.label, true)},
                {"heads", common_json::object()},
            });
        } else {
            json.back().at("heads")[llama_so8t_get_head(model, r.head).name] = probabilities(r.head, r.probs);
        }
    }
    return json;
}

common_json so8t_guard::changes() const {
    common_json json = common_json::array();
    for (const auto & r : log) {
        json.push_back({
            {"part", SO8T_PART_NAMES[r.part]},
            {"position", r.position},
            {"head", llama_so8t_get_head(model, r.head).name},
            {"label", label_name(r.head, r.label)},
            {"probabilities", probabilities(r.head, r.probs)},
        });
    }
    return json;
}

common_json so8t_guard::verdict() const {
    if (!active() || n_observed == 0) {
        return nullptr;
    }
    common_json thresholds = common_json::object();
    common_json debounce   = common_json::object();

    const common_json settings = so8t_policy_json(model, *params.policy).at("heads");
    for (const auto & [name, head] : settings.items()) {
        thresholds[name] = head.at("thresholds");
        debounce[name]   = head.at("debounce");
    }

    common_json json = common_json::object({
        {"decision", llama_so8t_action_name(decision())},
        {"enforced", enforced()},
        {"policy",
            {
                {"mode", so8t_mode_name(params.policy->mode)},
                {"sha256", params.policy->sha256},
            }},
        {"prompt", part_json(SO8T_PART_PROMPT)},
    });
    if (parts[SO8T_PART_THINK].n_positions > 0) {
        json["think"] = part_json(SO8T_PART_THINK);
    }
    json["answer"]    = part_json(SO8T_PART_ANSWER);
    json["triggered"] = nullptr;
    if (first.action != LLAMA_SO8T_ACTION_ALLOW) {
        json["triggered"] = common_json::object({
            {"part", SO8T_PART_NAMES[first.part]},
            {"position", first.position},
            {"head", llama_so8t_get_head(model, first.head).name},
            {"label", label_name(first.head, first.label)},
            {"probability", nullptr},
        });
        if (std::isfinite(first.probability)) {
            json["triggered"]["probability"] = so8t_short(first.probability);
        }
    }
    json["thresholds"] = thresholds;
    json["debounce"]   = debounce;
    return json;
}
