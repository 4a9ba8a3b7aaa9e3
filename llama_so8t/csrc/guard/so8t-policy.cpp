#include "so8t-policy.h"

#include "common.h"
#include "json.h"

#include <algorithm>
#include <cstdlib>

static const int32_t SO8T_N_WINDOW = 32; // tokens of a text without turns that are read as one

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
    const bool has_ema = aggregation == LLAMA_SO8T_AGGREGATION_EMA ||
                         std::count(prompt_aggregations.begin(), prompt_aggregations.end(),
                             LLAMA_SO8T_PROMPT_AGGREGATION_EMA) > 0;
    if (has_ema) {
        json["ema_alpha"] = so8t_short(ema_alpha);
    }
    if (reads_texts()) {
        json["prompt"] = common_json::array();
        for (const auto how : prompt_aggregations) {
            json["prompt"].push_back(llama_so8t_prompt_aggregation_name(how));
        }
    }
    return json;
}

bool so8t_policy::head::reads_texts() const {
    return so8t_in_scope(scope, true) &&
           std::any_of(prompt_aggregations.begin(), prompt_aggregations.end(),
               [](llama_so8t_prompt_aggregation how) { return how != LLAMA_SO8T_PROMPT_AGGREGATION_TOKEN; });
}

common_json so8t_policy::head::prompt_thresholds_json() const {
    common_json json = common_json::object();
    for (size_t k = 0; k < prompt_aggregations.size(); ++k) {
        common_json row = common_json::object();
        for (size_t i = 0; i < labels.size(); ++i) {
            row[labels[i]] = nullptr;
            if (rule == LLAMA_SO8T_RULE_THRESHOLD) {
                row[labels[i]] = so8t_short(prompt_thresholds[k * labels.size() + i]);
            }
        }
        json[llama_so8t_prompt_aggregation_name(prompt_aggregations[k])] = row;
    }
    return json;
}

bool so8t_policy::reads_texts() const {
    return std::any_of(heads.begin(), heads.end(), [](const head & head) { return head.reads_texts(); });
}

std::vector<so8t_text_span> so8t_text_windows(int32_t begin, int32_t end) {
    std::vector<so8t_text_span> windows;
    for (int32_t first = begin; first < end; first += SO8T_N_WINDOW) {
        const int32_t last = std::min(first + SO8T_N_WINDOW, end);
        windows.push_back({std::max(begin, last - SO8T_N_WINDOW), last});
    }
    return windows;
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
