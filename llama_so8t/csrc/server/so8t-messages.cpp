#include "so8t-messages.h"

#include "so8t-json.h"

static common_json so8t_event(const common_json & data) {
    return common_json::object({{"event", data.at("type")}, {"data", data}});
}

//
// enforced answers
//

// of a message, or of the delta of a stream
static void so8t_message_end(common_json & message, const so8t_answer & answer) {
    message["stop_reason"]   = answer.refused() ? "refusal" : "end_turn";
    message["stop_sequence"] = nullptr;
    if (answer.refused()) {
        message["stop_details"] = common_json::object(
            {{"type", "refusal"}, {"category", nullptr}, {"explanation", answer.refusal}});
    }
}

void so8t_message_enforce(common_json & message, const so8t_answer & answer) {
    common_json blocks = common_json::array();
    for (const auto & block : message.at("content")) {
        if (block.at("type") != "tool_use") {
            blocks.push_back(block);
        }
    }
    if (!answer.text.empty()) {
        blocks.push_back({{"type", "text"}, {"text", answer.text}});
    }
    message["content"] = blocks;
    so8t_message_end(message, answer);
}

void so8t_message_enforce(common_json & events, common_json & delta, const so8t_answer & answer) {
    if (!answer.text.empty()) {
        int index = 0;
        for (const auto & event : events) {
            index += event.at("event") == "content_block_stop";
        }
        const common_json block = common_json::object({{"type", "text"}, {"text", ""}});
        const common_json text  = common_json::object({{"type", "text_delta"}, {"text", answer.text}});
        events.push_back(so8t_event({{"type", "content_block_start"}, {"index", index}, {"content_block", block}}));
        events.push_back(so8t_event({{"type", "content_block_delta"}, {"index", index}, {"delta", text}}));
        events.push_back(so8t_event({{"type", "content_block_stop"}, {"index", index}}));
    }
    so8t_message_end(delta.at("delta"), answer);
}

//
// what an answer lacks
//

static void so8t_fill_usage(common_json & usage) {
    so8t_json_fill(usage, common_json::object({
                              {"cache_creation", nullptr},
                              {"cache_creation_input_tokens", 0},
                              {"cache_read_input_tokens", 0},
                              {"server_tool_use", nullptr},
                              {"service_tier", "standard"},
                          }));
}

static void so8t_fill_block(common_json & block) {
    if (block.at("type") == "text") {
        so8t_json_fill(block, common_json::object({{"citations", nullptr}}));
    } else if (block.at("type") == "thinking") {
        so8t_json_fill(block, common_json::object({{"signature", ""}}));
    } else if (block.at("type") == "tool_use") {
        so8t_json_fill(block, common_json::object({{"input", common_json::object()}}));
    }
}

// llama.cpp ends a turn where Anthropic names the sequence that ended it
static void so8t_fill_end(common_json & message) {
    if (!message.at("stop_sequence").is_null() && message.at("stop_reason") == "end_turn") {
        message["stop_reason"] = "stop_sequence";
    }
    so8t_json_fill(message, common_json::object({{"container", nullptr}, {"stop_details", nullptr}}));
}

void so8t_message_fill(common_json & message) {
    for (auto & block : message.at("content")) {
        so8t_fill_block(block);
    }
    so8t_fill_usage(message.at("usage"));
    so8t_fill_end(message);
}

//
// streams
//

void so8t_message_events::end_block(common_json & events) {
    if (open < 0) {
        return;
    }
    if (is_thinking) { // the API has a signature here, which a local model cannot make
        const common_json signature = common_json::object({{"type", "signature_delta"}, {"signature", ""}});
        events.push_back(so8t_event({{"type", "content_block_delta"}, {"index", open}, {"delta", signature}}));
    }
    events.push_back(so8t_event({{"type", "content_block_stop"}, {"index", open}}));
    open = -1;
}

void so8t_message_events::begin_block(common_json & events, common_json & data) {
    end_block(events);
    so8t_fill_block(data.at("content_block"));
    is_thinking                         = data.at("content_block").at("type") == "thinking";
    open                                = n_blocks++;
    places[data.at("index").get<int>()] = open;
}

common_json so8t_message_events::fill(const common_json & given) {
    common_json events = common_json::array();
    for (common_json event : given) {
        common_json & data     = event.at("data");
        const std::string type = data.at("type").get<std::string>();
        if (type == "message_start") {
            so8t_message_fill(data.at("message"));
            usage = data.at("message").at("usage");
        } else if (type == "content_block_start") {
            begin_block(events, data);
        } else if (type == "content_block_stop") { // it may have ended before the next one began
            if (places.count(data.at("index").get<int>()) && places[data.at("index").get<int>()] == open) {
                end_block(events);
            }
            continue;
        } else if (type == "content_block_delta" && data.at("delta").at("type") == "signature_delta") {
            continue; // end_block() has it
        } else if (type == "message_delta") {
            end_block(events);
            so8t_fill_end(data.at("delta"));
            so8t_json_fill(data.at("usage"), usage);
        }
        if (type == "content_block_start" || type == "content_block_delta") {
            data["index"] = places[data.at("index").get<int>()];
        }
        events.push_back(event);
    }
    return events;
}
