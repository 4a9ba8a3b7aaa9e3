#include "so8t-moderations.h"

#include "common.h"
#include "json.h"

#include <stdexcept>

static const size_t SO8T_MAX_INPUTS = 256;

// typed clients refuse a result that lacks one (platform.openai.com/docs/api-reference/moderations/object, 2026-11-28)
static const char * const SO8T_OPENAI_CATEGORIES[] = {
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
};

static void so8t_check_part(const common_json & part) {
    const bool is_named    = part.is_object() && part.contains("type") && part.at("type").is_string();
    const std::string type = is_named ? part.at("type").get<std::string>() : "";
    if (type != "text" || !part.contains("text") || !part.at("text").is_string()) {
        throw std::invalid_argument("\"input\" has a part of the type '" + type +
                                    "', expected {\"type\": \"text\", \"text\": TEXT}: the heads read nothing else");
    }
}

static void so8t_check_text(const common_json & text) {
    if (!text.is_string()) {
        throw std::invalid_argument("\"input\" is not a text, a list of texts, or a list of content parts");
    }
}

// what the message of each result says
static std::vector<common_json> so8t_moderation_contents(const common_json & input) {
    std::vector<common_json> contents;
    if (!input.is_array()) {
        so8t_check_text(input);
        contents.push_back(input);
    } else if (!input.empty() && input.at(0).is_object()) {
        for (const auto & part : input) {
            so8t_check_part(part);
        }
        contents.push_back(input);
    } else {
        for (const auto & text : input) {
            so8t_check_text(text);
            contents.push_back(text);
        }
    }
    return contents;
}

std::vector<common_json> so8t_moderation_inputs(const common_json & body) {
    std::vector<common_json> conversations;
    for (const auto & content : so8t_moderation_contents(body.value("input", common_json()))) {
        conversations.push_back(common_json::array({common_json::object({{"role", "user"}, {"content", content}})}));
    }
    if (conversations.empty() || conversations.size() > SO8T_MAX_INPUTS) {
        throw std::invalid_argument(
            string_format("\"input\" has %zu texts, expected 1 to %zu, or a list of content parts",
                conversations.size(), SO8T_MAX_INPUTS));
    }
    return conversations;
}

// what a head says of a text, whether it was asked or not
static const so8t_head_verdict & so8t_moderated_head(const so8t_verdict & verdict, size_t i_head) {
    const so8t_head_verdict & head = verdict.parts[SO8T_PART_PROMPT].heads[i_head];
    return head.probs.empty() && i_head < verdict.unasked.size() ? verdict.unasked[i_head] : head;
}

common_json so8t_moderation(const so8t_verdict & verdict) {
    common_json categories = common_json::object();
    common_json scores     = common_json::object();
    common_json types      = common_json::object();
    const auto add         = [&](const std::string & name, bool value, double score) {
        categories[name] = value;
        scores[name]     = score;
        types[name]      = common_json::array({"text"});
    };
    for (const char * name : SO8T_OPENAI_CATEGORIES) {
        add(name, false, 0.0);
    }
    const so8t_part_verdict & prompt = verdict.parts[SO8T_PART_PROMPT];
    for (size_t i = 0; i < prompt.heads.size(); ++i) {
        const auto & rule = verdict.policy->heads[i];
        const auto & head = so8t_moderated_head(verdict, i);
        for (size_t j = 0; j < rule.labels.size() && so8t_in_scope(rule.scope, true); ++j) {
            const std::string name = rule.name + "/" + rule.labels[j];
            if (rule.actions[j] == LLAMA_SO8T_ACTION_ALLOW) {
                continue;
            }
            if (head.probs.empty()) { // no label of the head that it depends on acts
                add(name, false, 0.0);
            } else {
                add(name, head.reached[j], std::isfinite(head.probs[j]) ? so8t_short(head.probs[j]) : 1.0);
            }
        }
    }
    return common_json::object({
        {"flagged", prompt.action != LLAMA_SO8T_ACTION_ALLOW},
        {"categories", categories},
        {"category_scores", scores},
        {"category_applied_input_types", types},
    });
}
