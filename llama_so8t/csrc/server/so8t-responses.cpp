#include "so8t-responses.h"

#include "so8t-json.h"

#include "server-common.h"

#include <ctime>

static json so8t_event(const json & data) {
    return {{"event", data.at("type")}, {"data", data}};
}

//
// enforced answers
//

static json so8t_text_part(const std::string & text) {
    return {{"type", "output_text"}, {"text", text}, {"annotations", json::array()}, {"logprobs", json::array()}};
}

static json so8t_message_item(const so8t_answer & answer) {
    const json part = answer.tells_refusal() ? json::object({{"type", "refusal"}, {"refusal", answer.refusal}}) :
                                               so8t_text_part(answer.text);
    return {
        {"id", "msg_" + random_string()},
        {"type", "message"},
        {"role", "assistant"},
        {"status", answer.refused() ? "incomplete" : "completed"},
        {"content", json::array({part})},
    };
}

static void so8t_incomplete(json & response, const char * reason) {
    response["status"]             = "incomplete";
    response["incomplete_details"] = {{"reason", reason}};
}

static void so8t_finish(json & response, const json & item, const so8t_answer & answer) {
    json output = json::array();
    for (const auto & given : response.at("output")) {
        if (given.at("type") != "function_call") { // of an enforced answer, it is not to be called
            output.push_back(given);
        }
    }
    output.push_back(item);
    response["output"] = output;
    if (answer.refused()) {
        so8t_incomplete(response, "content_filter");
    }
}

void so8t_response_enforce(json & response, const so8t_answer & answer) {
    so8t_finish(response, so8t_message_item(answer), answer);
}

void so8t_response_enforce(json & events, json & last, const so8t_answer & answer) {
    const json item        = so8t_message_item(answer);
    const json part        = item.at("content").at(0);
    const bool refused     = part.at("type") == "refusal";
    const std::string kind = refused ? "response.refusal" : "response.output_text";
    const std::string key  = refused ? "refusal" : "text";

    json started       = item;
    started["status"]  = "in_progress";
    started["content"] = json::array();

    json empty = part;
    empty[key] = "";

    const json & id = item.at("id");
    events.push_back(so8t_event({{"type", "response.output_item.added"}, {"item", started}}));
    events.push_back(so8t_event({{"type", "response.content_part.added"}, {"item_id", id}, {"part", empty}}));
    events.push_back(so8t_event({{"type", kind + ".delta"}, {"item_id", id}, {"delta", part.at(key)}}));
    events.push_back(so8t_event({{"type", kind + ".done"}, {"item_id", id}, {key, part.at(key)}}));
    events.push_back(so8t_event({{"type", "response.content_part.done"}, {"item_id", id}, {"part", part}}));
    events.push_back(so8t_event({{"type", "response.output_item.done"}, {"item", item}}));

    json & data = last.at("data");
    so8t_finish(data.at("response"), item, answer);
    if (answer.refused()) {
        last["event"] = "response.incomplete";
        data["type"]  = "response.incomplete";
    }
}

void so8t_response_cut(json & response) {
    so8t_incomplete(response, "max_output_tokens");
    if (!response.at("output").empty()) {
        response.at("output").back()["status"] = "incomplete";
    }
}

//
// what an answer lacks
//

// the tools that the model was told of; llama.cpp skips those that are no functions
static json so8t_tools(const json & body) {
    json tools = json::array();
    if (!body.contains("tools") || !body.at("tools").is_array()) {
        return tools;
    }
    for (json tool : body.at("tools")) {
        if (tool.is_object() && tool.contains("type") && tool.at("type") == "function") {
            so8t_json_fill(tool, {{"description", nullptr}, {"parameters", nullptr}, {"strict", true}});
            tools.push_back(tool);
        }
    }
    return tools;
}

static json so8t_repeated(const json & body, const char * key, bool (json::*is_type)() const, const json & otherwise) {
    return body.contains(key) && (body.at(key).*is_type)() ? body.at(key) : otherwise;
}

static json so8t_tool_choice(const json & body) {
    const json named = so8t_repeated(body, "tool_choice", &json::is_object, "auto");
    return so8t_repeated(body, "tool_choice", &json::is_string, named);
}

void so8t_response_events::begin(const std::string & text, const std::string & model) {
    const json parsed = so8t_json_too_deep(text) ? json::object() : json::parse_no_throw(text);
    const json body   = parsed.is_discarded() || !parsed.is_object() ? json::object() : parsed;
    const json null   = nullptr;

    base = {
        {"id", null},
        {"object", "response"},
        {"created_at", std::time(nullptr)},
        {"status", "in_progress"},
        {"background", false},
        {"completed_at", null},
        {"error", null},
        {"incomplete_details", null},
        {"instructions", so8t_repeated(body, "instructions", &json::is_string, null)},
        {"max_output_tokens", so8t_repeated(body, "max_output_tokens", &json::is_number_integer, null)},
        {"max_tool_calls", null},
        {"model", model},
        {"output", json::array()},
        {"parallel_tool_calls", so8t_repeated(body, "parallel_tool_calls", &json::is_boolean, true)},
        {"previous_response_id", null},
        {"reasoning", so8t_repeated(body, "reasoning", &json::is_object, {{"effort", nullptr}, {"summary", nullptr}})},
        {"service_tier", "default"},
        {"store", false},
        {"temperature", so8t_repeated(body, "temperature", &json::is_number, null)},
        {"text", {{"format", {{"type", "text"}}}}}, // llama.cpp reads no other format here
        {"tool_choice", so8t_tool_choice(body)},
        {"tools", so8t_tools(body)},
        {"top_logprobs", 0},
        {"top_p", so8t_repeated(body, "top_p", &json::is_number, null)},
        {"truncation", "disabled"},
        {"metadata", so8t_repeated(body, "metadata", &json::is_object, json::object())},
    };
    if (body.contains("user") && body.at("user").is_string()) { // it is a text or missing
        base["user"] = body.at("user");
    }
}

json so8t_response_events::fill_response(json response) const {
    if (response.contains("usage") && !response.at("usage").is_null()) {
        json & usage = response.at("usage");
        so8t_json_fill(usage, {{"output_tokens_details", {{"reasoning_tokens", 0}}}});
        so8t_json_fill(usage.at("input_tokens_details"), {{"cache_write_tokens", 0}});
    }
    so8t_json_fill(response, base);
    response["created_at"] = base.at("created_at"); // llama.cpp has the time of its end
    for (auto & item : response.at("output")) {
        so8t_json_fill(item, {{"status", "completed"}}); // llama.cpp gives thoughts of a stream none
    }
    response["completed_at"] = nullptr;
    if (response.at("status") == "completed") {
        response["completed_at"] = std::time(nullptr);
    }
    return response;
}

//
// streams
//

// places an event in the stream
void so8t_response_events::push(json & events, const json & given) {
    json data              = given;
    const std::string type = data.at("type").get<std::string>();
    const auto begins      = [&](const char * start) { return type.rfind(start, 0) == 0; };

    if (data.contains("response")) {
        data["response"] = fill_response(data.at("response"));
    }
    if (data.contains("item") || data.contains("item_id")) {
        const json & id      = data.contains("item") ? data.at("item").at("id") : data.at("item_id");
        const auto place     = places.emplace(id.get<std::string>(), (int) places.size()).first;
        data["output_index"] = place->second;
    }
    if (begins("response.content_part.") || begins("response.output_text.") || begins("response.refusal.") ||
        begins("response.reasoning_text.")) {
        data["content_index"] = 0; // an item of ours has one part
    }
    if (begins("response.output_text.")) {
        so8t_json_fill(data, {{"logprobs", json::array()}});
    }
    if (begins("response.content_part.") && data.at("part").at("type") == "output_text") {
        so8t_json_fill(data.at("part"), {{"annotations", json::array()}, {"logprobs", json::array()}});
    }
    data["sequence_number"] = n_events++;
    events.push_back(so8t_event(data));
}

// the events before the end of an item that llama.cpp leaves out
void so8t_response_events::push_done(json & events, const json & item) {
    if (item.at("type") == "reasoning") {
        push(events, {{"type", "response.reasoning_text.done"}, {"item_id", item.at("id")},
                         {"text", item.at("content").at(0).at("text")}});
    } else if (item.at("type") == "function_call") {
        push(events, {{"type", "response.function_call_arguments.done"}, {"item_id", item.at("id")},
                         {"name", item.at("name")}, {"arguments", item.at("arguments")}});
    }
}

json so8t_response_events::fill(const json & given) {
    json events = json::array();
    for (const auto & event : given) {
        json data = event.at("data");
        if (data.at("type") == "response.output_item.done") {
            push_done(events, data.at("item"));
            so8t_json_fill(data.at("item"), {{"status", "completed"}});
        }
        push(events, data);
    }
    return events;
}
