#include "so8t-client-texts.h"

#include "json.h"

std::vector<so8t_client_text> so8t_client_texts(const std::vector<common_chat_msg> & messages) {
    std::vector<so8t_client_text> texts;
    for (const auto & message : messages) {
        const auto add = [&](const std::string & text) {
            if (!text.empty()) {
                texts.push_back({message.role, text});
            }
        };
        add(message.reasoning_content);
        add(message.content);
        for (const auto & part : message.content_parts) {
            if (part.type == "text") {
                add(part.text);
            }
        }
    }
    return texts;
}

// strings of a prompt: alone, between tokens, in a list of prompts, or with data beside it
static void so8t_add_strings(const common_json & prompt, std::vector<so8t_client_text> & texts) {
    if (prompt.is_string()) {
        if (prompt != "") {
            texts.push_back({"", prompt.get<std::string>()});
        }
    } else if (prompt.is_array()) {
        for (const auto & item : prompt) {
            so8t_add_strings(item, texts);
        }
    } else if (prompt.is_object() && prompt.contains("prompt_string")) {
        so8t_add_strings(prompt.at("prompt_string"), texts);
    }
}

std::vector<so8t_client_text> so8t_client_texts(const common_json & body) {
    std::vector<so8t_client_text> texts;
    const common_json extra = body.value("input_extra", common_json::array());
    for (const auto & file : extra) {
        if (file.is_object()) {
            so8t_add_strings(file.value("text", common_json()), texts);
        }
    }
    for (const char * key : {"input_prefix", "input_suffix", "infill_prompt", "prompt"}) {
        so8t_add_strings(body.value(key, common_json()), texts);
    }
    return texts;
}

static bool so8t_has_text(const common_json & object, const char * key) {
    return object.is_object() && object.contains(key) && object.at(key).is_string() &&
           !object.at(key).get<std::string>().empty();
}

void so8t_refusals_as_text(common_json & body) {
    if (!body.contains("messages") || !body.at("messages").is_array()) {
        return;
    }
    for (auto & message : body.at("messages")) {
        if (!message.is_object() || !so8t_has_text(message, "role") || message.at("role") != "assistant") {
            continue;
        }
        if (message.contains("content") && message.at("content").is_array()) {
            for (auto & part : message.at("content")) {
                if (so8t_has_text(part, "refusal") && so8t_has_text(part, "type") && part.at("type") == "refusal") {
                    part = common_json::object({{"type", "text"}, {"text", part.at("refusal")}});
                }
            }
        } else if (!so8t_has_text(message, "content") && so8t_has_text(message, "refusal")) {
            message["content"] = message.at("refusal");
        }
    }
}
