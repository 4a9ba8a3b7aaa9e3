#pragma once

#include "so8t.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

class common_json;
struct common_params;

// What the tools do with the verdicts of a model. Settings come from a JSON file and from flags, which override it:
//
//   {"mode": "off|monitor|enforce", "think": "monitor|enforce", "on_refuse": "stop|message", "refusal": TEXT,
//    "escalation": TEXT, "debounce": N, "holdback": N, "escalation_wait": SECONDS,
//    "heads": {NAME: {"debounce": N, "thresholds": {LABEL: T}}}}

enum so8t_mode {
    SO8T_MODE_OFF,     // heads are not read
    SO8T_MODE_MONITOR, // verdicts are reported and recorded
    SO8T_MODE_ENFORCE, // and change what is delivered
};

// the policy in force, for one model
struct so8t_policy {
    struct head {
        int32_t debounce;              // consecutive positions of an answer that must agree
        std::vector<float> thresholds; // of each label
    };

    so8t_mode mode          = SO8T_MODE_MONITOR;
    so8t_mode think         = SO8T_MODE_ENFORCE; // inside a think block; not stricter than mode
    bool message            = true;              // a refusal is a text, otherwise the answer just ends
    std::string refusal     = "I can't help with that.";
    std::string escalation  = "This request needs the decision of a person. It was not answered.";
    int32_t holdback        = 0; // tokens withheld from a stream until they are judged
    int32_t escalation_wait = 0; // seconds a reviewer has, 0: there is none

    std::vector<head> heads; // as in the model

    llama_token eog = LLAMA_TOKEN_NULL; // ends an answer

    std::string sha256; // of the settings in force, as so8t_policy_json() writes them

    bool enforces(bool in_think) const;
};

// settings as they were given, before a model is known
struct so8t_policy_params {
    std::shared_ptr<const common_json> file;  // --so8t-policy-file
    std::shared_ptr<const common_json> flags; // the same keys

    bool has_reviewers = false; // somebody can answer escalations: llama-server
};

// reads and checks a policy file; a text: what is wrong with it. That is an error only for a model with heads:
// the environment of one program may reach others
std::shared_ptr<const common_json> so8t_policy_read(const std::string & path);

// sets one of the keys above, checked as in a file
void so8t_policy_set(so8t_policy_params & params, const std::string & key, const common_json & value);

// HEAD/LABEL=VALUE, several separated by commas
void so8t_policy_set_thresholds(so8t_policy_params & params, const std::string & text);

// the policy for this model, null if it has no heads
// throws std::invalid_argument: a head or label that the model does not have, no token to end an answer with
std::shared_ptr<const so8t_policy> so8t_policy_init(const llama_model * model, const so8t_policy_params & params);

// all settings in force, without the hash
common_json so8t_policy_json(const llama_model * model, const so8t_policy & policy);

const char * so8t_mode_name(so8t_mode mode);

// a float as a short decimal: 0.7, not 0.699999988
double so8t_short(float value);
