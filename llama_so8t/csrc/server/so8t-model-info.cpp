#include "so8t-model-info.h"

#include "so8t.h"

#include <algorithm>

// what the head reads
static json so8t_reading_json(const llama_so8t_head & head) {
    json result = {
        {"form", llama_so8t_form_name(head.form)},
        {"taps", std::vector<int32_t>(head.taps, head.taps + head.n_taps)},
        {"tap_norm", llama_so8t_tap_norm_name(head.tap_norm)},
        {"representation", llama_so8t_representation_name(head.representation)},
    };
    if (head.form == LLAMA_SO8T_FORM_ATTENTION) {
        result["sliding_window"] = head.sliding_window;
    }
    return result;
}

// how positions of an answer and tokens of a prompt are combined
static void so8t_add_aggregation(const llama_so8t_head & head, const so8t_policy::head & set, json & result) {
    json ways       = json::array();
    json thresholds = json::object();
    bool has_ema    = head.aggregation == LLAMA_SO8T_AGGREGATION_EMA;
    for (int32_t i = 0; i < head.n_prompt_aggregations; ++i) {
        const char * way = llama_so8t_prompt_aggregation_name(head.prompt_aggregations[i]);
        has_ema          = has_ema || head.prompt_aggregations[i] == LLAMA_SO8T_PROMPT_AGGREGATION_EMA;
        ways.push_back(way);
        for (int32_t label = 0; label < head.n_labels; ++label) {
            thresholds[way][set.labels[label]] = so8t_short(set.prompt_thresholds[i * head.n_labels + label]);
        }
    }
    result["aggregation"]        = llama_so8t_aggregation_name(head.aggregation);
    result["prompt_aggregation"] = ways;
    if (has_ema) {
        result["ema_alpha"] = so8t_short(head.ema_alpha);
    }
    if (head.aggregation == LLAMA_SO8T_AGGREGATION_WINDOW) {
        result["window"] = head.window;
    }
    if (head.rule == LLAMA_SO8T_RULE_THRESHOLD && (head.scope & LLAMA_SO8T_SCOPE_PROMPT)) {
        result["prompt_thresholds"] = thresholds;
    }
}

json so8t_heads_json(const llama_model * model, const so8t_policy & policy) {
    json heads = json::object();
    for (size_t i = 0; i < policy.heads.size(); ++i) {
        const auto head  = llama_so8t_get_head(model, i);
        const auto & set = policy.heads[i];

        json actions = json::array();
        for (const auto action : set.actions) {
            actions.push_back(llama_so8t_action_name(action));
        }
        const char * scope = head.scope == LLAMA_SO8T_SCOPE_PROMPT ? "prompt" :
                             head.scope == LLAMA_SO8T_SCOPE_ANSWER ? "answer" :
                                                                     "both";

        json result           = so8t_reading_json(head);
        result["labels"]      = set.labels;
        result["actions"]     = actions;
        result["link"]        = llama_so8t_link_name(head.link);
        result["rule"]        = llama_so8t_rule_name(set.rule);
        result["thresholds"]  = set.thresholds_json();
        result["fitted"]      = set.fitted;
        result["debounce"]    = set.debounce;
        result["temperature"] = so8t_short(head.temperature);
        result["scope"]       = scope;
        result["depends_on"]  = nullptr;
        if (head.depends_on >= 0) {
            result["depends_on"] = policy.heads[head.depends_on].name;
        }
        so8t_add_aggregation(head, set, result);
        heads[set.name] = result;
    }
    return heads;
}

json so8t_rotations_json(const llama_model * model) {
    json in_graph = json::array();
    json folded   = json::array();
    for (int32_t i = 0; i < llama_so8t_n_rotations(model); ++i) {
        const auto rotation = llama_so8t_get_rotation(model, i);
        (rotation.folded ? folded : in_graph).push_back(rotation.site);
    }
    // a model whose rotations are not in SO(8) is not loaded
    return {{"explicit", in_graph}, {"folded", folded}, {"checked", true}};
}
