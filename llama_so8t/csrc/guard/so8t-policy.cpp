#include "so8t-policy.h"

#include "common.h"
#include "json.h"

#include <algorithm>
#include <cstdlib>

const char * so8t_mode_name(so8t_mode mode) {
    switch (mode) {
        case SO8T_MODE_OFF:     return "off";
        case SO8T_MODE_MONITOR: return "monitor";
        case SO8T_MODE_ENFORCE: return "enforce";
    }
    return "?";
}

const char * so8t_on_refuse_name(so8t_on_refuse on_refuse) {
    switch (on_refuse) {
        case SO8T_ON_REFUSE_STOP:    return "stop";
        case SO8T_ON_REFUSE_MESSAGE: return "message";
    }
    return "?";
}

const char * so8t_refusal_in_name(so8t_refusal_in refusal_in) {
    switch (refusal_in) {
        case SO8T_REFUSAL_IN_CONTENT: return "content";
        case SO8T_REFUSAL_IN_REFUSAL: return "refusal";
        case SO8T_REFUSAL_IN_BOTH:    return "both";
    }
    return "?";
}

const char * so8t_turns_name(so8t_turns turns) {
    switch (turns) {
        case SO8T_TURNS_BOTH:    return "both";
        case SO8T_TURNS_CONTEXT: return "context";
        case SO8T_TURNS_ALONE:   return "alone";
    }
    return "?";
}

const char * so8t_system_texts_name(so8t_system_texts system_texts) {
    switch (system_texts) {
        case SO8T_SYSTEM_TEXTS_ALONE:   return "alone";
        case SO8T_SYSTEM_TEXTS_CONTEXT: return "context";
    }
    return "?";
}

const char * so8t_refused_turns_name(so8t_refused_turns refused_turns) {
    switch (refused_turns) {
        case SO8T_REFUSED_TURNS_NOTE: return "note";
        case SO8T_REFUSED_TURNS_ACT:  return "act";
    }
    return "?";
}

const char * so8t_raw_prompts_name(so8t_raw_prompts raw_prompts) {
    switch (raw_prompts) {
        case SO8T_RAW_PROMPTS_JUDGE:  return "judge";
        case SO8T_RAW_PROMPTS_REFUSE: return "refuse";
        case SO8T_RAW_PROMPTS_LAST:   return "last";
    }
    return "?";
}

const char * so8t_request_lora_name(so8t_request_lora request_lora) {
    switch (request_lora) {
        case SO8T_REQUEST_LORA_REFUSE: return "refuse";
        case SO8T_REQUEST_LORA_ALLOW:  return "allow";
    }
    return "?";
}

common_json so8t_policy::head::thresholds_json() const {
    common_json json = common_json::object();
    for (size_t i = 0; i < labels.size(); ++i) {
        json[labels[i]] = nullptr;
        if (rule == LLAMA_SO8T_RULE_THRESHOLD) {
            json[labels[i]] = so8t_short(thresholds[i]);
        }
    }
    return json;
}

common_json so8t_policy::head::aggregation_json() const {
    common_json json = common_json::object();
    if (aggregation != LLAMA_SO8T_AGGREGATION_RUN) {
        json["answer"] = llama_so8t_aggregation_name(aggregation);
    }
    if (aggregation == LLAMA_SO8T_AGGREGATION_WINDOW) {
        json["window"] = window;
    }
    if (aggregation == LLAMA_SO8T_AGGREGATION_EMA) {
        json["ema_alpha"] = so8t_short(ema_alpha);
    }
    return json;
}

bool so8t_policy::enforces(bool in_think) const {
    return mode == SO8T_MODE_ENFORCE && (!in_think || think == SO8T_MODE_ENFORCE);
}

int32_t so8t_policy::holdback_needed() const {
    int32_t n_needed = 0;
    for (const head & head : heads) {
        n_needed = std::max(n_needed, so8t_n_needed(head));
    }
    return mode == SO8T_MODE_ENFORCE ? n_needed : 0;
}

double so8t_short(float value) {
    return std::strtod(string_format("%.7g", value).c_str(), nullptr);
}
