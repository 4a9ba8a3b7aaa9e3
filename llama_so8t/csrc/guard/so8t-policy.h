#pragma once

#include "so8t-rules.h"
#include "so8t.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

class common_json;

// What the tools do with the verdicts of a model. so8t-policy-keys.h has a row for each setting, so8t-policy-settings.h
// reads them.

enum so8t_mode : int {
    SO8T_MODE_OFF,     // heads are not read
    SO8T_MODE_MONITOR, // verdicts are reported and recorded
    SO8T_MODE_ENFORCE, // and change what is delivered
};

enum so8t_on_refuse {
    SO8T_ON_REFUSE_STOP,    // a refused answer just ends
    SO8T_ON_REFUSE_MESSAGE, // it ends with the text of a refusal
};

// where the text of a refusal stands in formats that have a field for it beside the content
enum so8t_refusal_in {
    SO8T_REFUSAL_IN_CONTENT,
    SO8T_REFUSAL_IN_REFUSAL,
    SO8T_REFUSAL_IN_BOTH,
};

// how the turns of a conversation are read
enum so8t_turns {
    SO8T_TURNS_BOTH,    // the stricter verdict of the two counts
    SO8T_TURNS_CONTEXT, // with all that stands before them
    SO8T_TURNS_ALONE,   // each by itself
};

// texts that a client gives a model beside the turns: of the system, of tools, options of the template
enum so8t_system_texts {
    SO8T_SYSTEM_TEXTS_ALONE,   // each is read by itself as well
    SO8T_SYSTEM_TEXTS_CONTEXT, // as what stands before the turns, and no more
};

// what becomes of a turn that is followed by the guard's own words
enum so8t_refused_turns {
    SO8T_REFUSED_TURNS_NOTE, // it is told, and does not act again
    SO8T_REFUSED_TURNS_ACT,
};

// prompts that are not made by the template of the model
enum so8t_raw_prompts {
    SO8T_RAW_PROMPTS_JUDGE,  // their turns are found, and what stands outside of them is read as one more
    SO8T_RAW_PROMPTS_REFUSE, // they are not served
    SO8T_RAW_PROMPTS_LAST,   // only their last token is read
};

// adapters that a client chooses (by "lora" in its request, or by POST /lora-adapters), by which its prompt and answer would be judged as well
enum so8t_request_lora {
    SO8T_REQUEST_LORA_REFUSE,
    SO8T_REQUEST_LORA_ALLOW,
};

// tokens [begin, end) of a text in a prompt
struct so8t_text_span {
    int32_t begin;
    int32_t end;
};

// Finds what heads that read texts read in the tokens of a prompt; none of these is empty. Who knows the template of the
// model sets it, before a prompt is read.
struct so8t_text_finder {
    std::function<std::vector<so8t_text_span>(const std::vector<llama_token> &)> find;
};

// A prompt of which nobody knows the turns is read in windows: of 32 tokens each, the last one up to its end.
std::vector<so8t_text_span> so8t_text_windows(int32_t begin, int32_t end);

const int32_t SO8T_HOLDBACK_AUTO = -1; // as many as the heads need; never in a policy that is in force

// the policy in force, for one model
struct so8t_policy {
    struct head : so8t_head_rule {
        std::string name;
        std::vector<std::string> labels;

        common_json thresholds_json() const; // {LABEL: threshold, null by argmax}

        // how a prompt is read, and the thresholds of each of these ways and labels, row after row
        std::vector<llama_so8t_prompt_aggregation> prompt_aggregations = {LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN};
        std::vector<float> prompt_thresholds;

        bool reads_texts() const; // of a prompt, not only a token

        // how positions are combined: {"answer": NAME, "window": N or "ema_alpha": A, "prompt": [NAME]}; empty where they
        // are not
        common_json aggregation_json() const;
        common_json prompt_thresholds_json() const; // {NAME: {LABEL: threshold}} of a head that reads texts
    };

    so8t_mode mode             = SO8T_MODE_MONITOR;
    so8t_mode think            = SO8T_MODE_ENFORCE; // inside a think block; not stricter than mode
    so8t_on_refuse on_refuse   = SO8T_ON_REFUSE_MESSAGE;
    so8t_refusal_in refusal_in = SO8T_REFUSAL_IN_BOTH;
    std::string refusal        = "I can't help with that.";
    std::string escalation     = "This request needs the decision of a person. It was not answered.";
    int32_t holdback           = SO8T_HOLDBACK_AUTO; // tokens withheld from a stream until they are judged
    double escalation_wait     = 0;                  // seconds a reviewer has, 0: there is none

    so8t_turns turns                 = SO8T_TURNS_BOTH;
    so8t_system_texts system_texts   = SO8T_SYSTEM_TEXTS_ALONE;
    so8t_refused_turns refused_turns = SO8T_REFUSED_TURNS_NOTE;
    so8t_raw_prompts raw_prompts     = SO8T_RAW_PROMPTS_JUDGE;
    so8t_request_lora request_lora   = SO8T_REQUEST_LORA_REFUSE;

    std::vector<head> heads; // as in the model

    llama_token eog = LLAMA_TOKEN_NULL; // ends an answer

    std::string sha256; // of the settings in force, as so8t_policy_json() writes them

    const std::shared_ptr<so8t_text_finder> texts = std::make_shared<so8t_text_finder>();

    bool reads_texts() const; // a head reads texts of a prompt, not only a token
    bool enforces(bool in_think) const;

    // tokens that a stream has to withhold, so that none of a run that triggers is sent
    int32_t holdback_needed() const;
};

const char * so8t_mode_name(so8t_mode mode);
const char * so8t_on_refuse_name(so8t_on_refuse on_refuse);
const char * so8t_refusal_in_name(so8t_refusal_in refusal_in);
const char * so8t_turns_name(so8t_turns turns);
const char * so8t_system_texts_name(so8t_system_texts system_texts);
const char * so8t_refused_turns_name(so8t_refused_turns refused_turns);
const char * so8t_raw_prompts_name(so8t_raw_prompts raw_prompts);
const char * so8t_request_lora_name(so8t_request_lora request_lora);

// a float as a short decimal: 0.7, not 0.699999988
double so8t_short(float value);
