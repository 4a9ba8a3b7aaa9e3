#pragma once

#include "so8t-rules.h"
#include "so8t.h"

#include <cstdint>
#include <string>
#include <vector>

// What the tools do with the verdicts of a model. so8t-policy-keys.h has a row for each setting, so8t-policy-settings.h
// reads them.

enum so8t_mode {
    SO8T_MODE_OFF,     // heads are not read
    SO8T_MODE_MONITOR, // verdicts are reported and recorded
    SO8T_MODE_ENFORCE, // and change what is delivered
};

enum so8t_on_refuse {
    SO8T_ON_REFUSE_STOP,    // a refused answer just ends
    SO8T_ON_REFUSE_MESSAGE, // it ends with the text of a refusal
};

// the policy in force, for one model
struct so8t_policy {
    struct head : so8t_head_rule {
        std::string name;
        std::vector<std::string> labels;
    };

    so8t_mode mode           = SO8T_MODE_MONITOR;
    so8t_mode think          = SO8T_MODE_ENFORCE; // inside a think block; not stricter than mode
    so8t_on_refuse on_refuse = SO8T_ON_REFUSE_MESSAGE;
    std::string refusal      = "I can't help with that.";
    std::string escalation   = "This request needs the decision of a person. It was not answered.";
    int32_t holdback         = 0; // tokens withheld from a stream until they are judged
    int32_t escalation_wait  = 0; // seconds a reviewer has, 0: there is none

    std::vector<head> heads; // as in the model

    llama_token eog = LLAMA_TOKEN_NULL; // ends an answer

    std::string sha256; // of the settings in force, as so8t_policy_json() writes them

    bool enforces(bool in_think) const;
};

const char * so8t_mode_name(so8t_mode mode);
const char * so8t_on_refuse_name(so8t_on_refuse on_refuse);

// a float as a short decimal: 0.7, not 0.699999988
double so8t_short(float value);
