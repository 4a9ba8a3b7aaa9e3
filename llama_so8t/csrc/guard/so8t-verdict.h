#pragma once

#include "so8t-policy.h"

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

class common_json;

// What heads said of a request, and what was done about it. The guard fills it, the delivery of llama-server goes on
// with it, and everyone who tells of it reads the fields. It knows no model, which may be unloaded meanwhile.

enum so8t_part {
    SO8T_PART_PROMPT,
    SO8T_PART_THINK,
    SO8T_PART_ANSWER,
    SO8T_N_PARTS,
};

// how a text of a prompt was read besides the last token of the prompt (docs/guard.md, "Where a prompt is judged")
enum so8t_reading_kind {
    SO8T_READING_CONTEXT, // a turn of a user or the result of a tool, with all that stands before it
    SO8T_READING_ALONE,   // the same turn as the only one of a conversation
    SO8T_READING_GIVEN,   // text of the assistant that the client supplied, at every token, as an answer
    SO8T_READING_TEXT,    // what stands outside of the turns of a raw prompt, as the only turn of a conversation
};

// what was done with an answer
enum so8t_enforced {
    SO8T_ENFORCED_NONE,
    SO8T_ENFORCED_STOP,        // it ended, without a text
    SO8T_ENFORCED_MESSAGE,     // with the text of a refusal
    SO8T_ENFORCED_ESCALATION,  // with the text of an escalation that nobody can decide
    SO8T_ENFORCED_HELD,        // it waits for a person; then:
    SO8T_ENFORCED_RELEASED,    // the person allowed it
    SO8T_ENFORCED_EDITED,      // or wrote another text in its place
    SO8T_ENFORCED_DENIED,      // or did not
    SO8T_ENFORCED_TIMEOUT,     // or did not decide in time
    SO8T_ENFORCED_SHUTDOWN,    // or the server ended before
    SO8T_ENFORCED_UNAVAILABLE, // none is given, because the audit log cannot be written
};

enum so8t_escalation_status {
    SO8T_ESCALATION_PENDING,
    SO8T_ESCALATION_GONE, // nobody waits for it at the moment; its client may come back
    SO8T_ESCALATION_ALLOWED,
    SO8T_ESCALATION_EDITED, // allowed, with another text
    SO8T_ESCALATION_DENIED,
    SO8T_ESCALATION_TIMEOUT,
    SO8T_ESCALATION_SHUTDOWN,  // the server ended
    SO8T_ESCALATION_CANCELLED, // its client went away and did not come back
};

const char * so8t_part_name(so8t_part part);
const char * so8t_reading_kind_name(so8t_reading_kind kind);
const char * so8t_enforced_name(so8t_enforced enforced);
const char * so8t_escalation_status_name(so8t_escalation_status status);

// one head in one part
struct so8t_head_verdict {
    std::vector<float>
        probs; // of each label at the last position, aggregated; empty: the head was not asked; NaN: not finite
    std::vector<float> peak;   // largest so far
    std::vector<bool> reached; // its rule held for the label at a position, whatever the debounce; empty as probs
    int32_t label = -1;        // with the largest of probs; -1: not finite
    int32_t aggregation =
        -1; // of a prompt, by which probs are: index into that of the policy; -1: it is read at a token

    int32_t triggered_position = -1; // where a label first triggered
    int32_t triggered_label    = -1; // -1: none did
};

// positions and debounce start anew in each part
struct so8t_part_verdict {
    llama_so8t_action action = LLAMA_SO8T_ACTION_ALLOW;
    int32_t n_positions      = 0;
    std::vector<so8t_head_verdict> heads; // as in the policy; none before the first position
};

// where a decision fell
struct so8t_trigger {
    llama_so8t_action action = LLAMA_SO8T_ACTION_ALLOW; // allow: nothing triggered
    so8t_part part           = SO8T_PART_PROMPT;
    int32_t position         = -1;
    int32_t head             = -1;
    int32_t label            = -1; // -1: not finite
    float probability        = NAN;
    int32_t reading          = -1; // index into so8t_verdict::turns; -1: the part itself
};

// one reading of a text of the prompt
struct so8t_turn_verdict {
    so8t_reading_kind kind;
    int32_t turn; // index of the message; in a raw prompt, of the text that an end-of-turn token closes
    bool noted;   // it does not act: the guard has refused this turn already
    so8t_part_verdict part;
    so8t_trigger triggered;
};

// a head has another label than at the position before; its first label is one too
struct so8t_label_change {
    so8t_part part;
    int32_t position;
    int32_t head;
    int32_t label; // -1: not finite
    std::vector<float> probs;
};

// a token that was judged
struct so8t_traced_token {
    so8t_part part;
    int32_t position;
    llama_token id;
    std::string text;
    bool delivered = true;                 // otherwise neither id nor text is told
    std::vector<std::vector<float>> probs; // of each head; empty: it was not asked
};

struct so8t_verdict {
    std::shared_ptr<const so8t_policy> policy; // in force; it has the names of heads and labels

    so8t_enforced enforced = SO8T_ENFORCED_NONE;
    so8t_trigger triggered; // first one of the strongest action
    so8t_part_verdict parts[SO8T_N_PARTS];
    std::vector<so8t_turn_verdict> turns; // of the prompt, those with an action other than allow
    std::vector<so8t_label_change> changes;
    std::vector<so8t_head_verdict> unasked; // of a text that is judged: each head behind one that refused

    int32_t n_read = 0; // positions
    int64_t t_us   = 0; // spent on reading and judging

    struct escalation_entry {
        std::string id;
        so8t_escalation_status status = SO8T_ESCALATION_PENDING;
        std::string reviewer; // empty: nobody decided
    };

    struct audit_entry {
        int64_t seq;
        std::string hash;
    };

    std::optional<escalation_entry> escalation;          // of a held answer
    std::optional<audit_entry> audit;                    // line of the log
    std::optional<std::vector<so8t_traced_token>> trace; // if the request asks for it

    llama_so8t_action decision() const { return triggered.action; } // of the heads, whatever was enforced

    // tokens of the answer, thoughts included, that have a verdict
    int32_t n_judged() const { return parts[SO8T_PART_THINK].n_positions + parts[SO8T_PART_ANSWER].n_positions; }

    // all but the first n tokens of the answer are not told in the trace
    void hide_text(int32_t n);

    const std::string & head_name(int32_t head) const { return policy->heads[head].name; }
    std::string label_name(int32_t head, int32_t label) const;

    // The object "so8t" of an answer (docs/guard.md):
    // {"decision", "enforced", "policy": {"mode", "sha256"},
    //  "prompt": {"action", "heads": {NAME: {"label", "probabilities", "aggregation"}}},
    //  "think", "answer": {"action", "n_positions", "heads": {NAME: {"label", "probabilities", "peak", "triggered"}}},
    //  "turns": [{"turn", "reading", "noted", "action", "heads": {NAME: {"label", "probabilities"}}}],
    //  "triggered": null | {"part", "position", "head", "label", "probability", "turn", "reading"},
    //  "thresholds": {NAME: {LABEL: T}}, "debounce": {NAME: N},
    //  "prompt_thresholds": {NAME: {AGGREGATION: {LABEL: T}}},
    //  "aggregation": {NAME: {"answer", "window", "ema_alpha", "prompt": [AGGREGATION]}},
    //  "escalation": {"id", "status", "reviewer"}, "audit": {"seq", "hash"},
    //  "trace": [{"part", "position", "id", "text", "heads": {NAME: {LABEL: P}}}]}
    // "think", "turns", "turn" and "reading", "aggregation" and "prompt_thresholds" of heads that combine positions, and the last three only where
    // there is one
    common_json to_json() const;

    common_json triggered_json() const; // null: nothing triggered
    common_json changes_json() const;   // [{"part", "position", "head", "label", "probabilities"}]

  private:
    common_json probabilities_json(int32_t head, const std::vector<float> & values) const;
    common_json part_json(const so8t_part_verdict & part, bool is_prompt) const;
    common_json turns_json() const;
    common_json trace_json() const;
};

// What a client needs of the object "so8t" to tell of it in words: what was enforced, and of each part its action and
// the labels, probabilities and triggers of its heads. Throws what common_json throws, for any other object.
so8t_verdict so8t_verdict_from_json(const common_json & json);

// a probability as a short decimal, null where it is not finite
common_json so8t_probability_json(float probability);
