#include "so8t-api-results.h"

#include "so8t-errors.h"
#include "so8t-json.h"

#include "server-task.h"

#include <algorithm>
#include <stdexcept>

void so8t_api_results::begin(
    task_response_type type, const json & request, const std::string & body, const std::string & model) {
    this->type = type;
    // as llama.cpp names them; it checks the values later
    n_per_prompt  = std::max(1, json_value(request, "n_cmpl", json_value(request, "n", 1)));
    include_usage = json_value(json_value(request, "stream_options", json::object()), "include_usage", false);
    if (type == TASK_RESPONSE_TYPE_OAI_RESP && n_per_prompt > 1) {
        throw std::invalid_argument(string_format("\"n\" is %d, but a response has one choice", n_per_prompt));
    }
    if (type == TASK_RESPONSE_TYPE_OAI_RESP) {
        responses.begin(body, model);
    }
}

//
// usage
//

void so8t_api_results::add_usage(const json & given, int index) {
    const bool is_new = prompts.insert(index / n_per_prompt).second;
    if (usage.is_null()) {
        usage = given;
        return;
    }
    const auto add = [&](const char * key) {
        const int64_t n       = given.at(key).get<int64_t>();
        usage[key]            = usage.at(key).get<int64_t>() + n;
        usage["total_tokens"] = usage.at("total_tokens").get<int64_t>() + n;
    };
    add("completion_tokens");
    if (is_new) {
        add("prompt_tokens");
    }
}

void so8t_api_results::sum_usage(json & results) {
    int index = 0;
    for (const auto & result : results) {
        add_usage(result.at("usage"), index++);
    }
    results.at(0)["usage"] = usage;
}

//
// choices
//

static int so8t_n_chars(const std::string & text) {
    return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

// Probabilities of tokens in the older form of /v1/completions, beside llama.cpp's own
static void so8t_fill_text_logprobs(json & logprobs, int & n_chars) {
    json tokens = json::array();
    json values = json::array();
    json tops   = json::array();
    json places = json::array();
    for (const auto & token : logprobs.at("content")) {
        if (!token.contains("logprob")) {
            return; // probabilities after sampling: they have no place there
        }
        json top = json::object();
        for (const auto & other : token.at("top_logprobs")) {
            top[other.at("token").get<std::string>()] = other.at("logprob");
        }
        tokens.push_back(token.at("token"));
        values.push_back(token.at("logprob"));
        tops.push_back(top);
        places.push_back(n_chars);
        n_chars += so8t_n_chars(token.at("token").get<std::string>());
    }
    so8t_json_fill(
        logprobs, {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", places}});
}

void so8t_api_results::fill_choice(json & choice) {
    so8t_json_fill(choice, {{"logprobs", nullptr}});
    json & logprobs = choice.at("logprobs");
    if (type == TASK_RESPONSE_TYPE_OAI_CMPL && logprobs.is_object()) {
        so8t_fill_text_logprobs(logprobs, n_chars[choice.at("index").get<int>()]);
    } else if (logprobs.is_object()) {
        so8t_json_fill(logprobs, {{"refusal", nullptr}});
    }
    if (choice.contains("message")) {
        so8t_json_fill(choice.at("message"), {{"content", nullptr}, {"refusal", nullptr}});
    }
}

json so8t_api_results::whole(json result) {
    switch (type) {
        case TASK_RESPONSE_TYPE_OAI_RESP:  return responses.fill_response(result);
        case TASK_RESPONSE_TYPE_ANTHROPIC: so8t_message_fill(result); return result;
        case TASK_RESPONSE_TYPE_OAI_CMPL:
        case TASK_RESPONSE_TYPE_OAI_CHAT:
            for (auto & choice : result.at("choices")) {
                fill_choice(choice);
            }
            return result;
        default: return result;
    }
}

//
// streams
//

// the chunk behind the last one, which tells the usage
static json so8t_usage_chunk(json & end, const json & usage) {
    json chunk = json::object({{"choices", json::array()}});
    for (const char * key : {"created", "id", "model", "system_fingerprint", "object"}) {
        chunk[key] = end.at(key);
    }
    chunk["usage"] = usage;
    return chunk;
}

static void so8t_move(json & from, json & to, const char * key) {
    if (from.contains(key)) {
        to[key] = from.at(key);
        from.erase(key);
    }
}

// the end of a choice, which is the last one in chunks; given: its usage
void so8t_api_results::end_choice(json & chunks, const json & given, bool is_last) {
    json & end      = chunks.back();
    const int index = end.at("choices").at(0).at("index").get<int>();
    add_usage(given, index);
    is_several |= !is_last;
    if (index == 0 && end.contains("so8t")) {
        verdict = end.at("so8t");
    }
    if (!is_last) {
        return;
    }
    if (!include_usage) { // llama.cpp tells it all the same
        end["usage"] = usage;
        return;
    }
    json chunk = so8t_usage_chunk(end, usage);
    so8t_move(end, chunk, "timings");
    if (is_several && !verdict.is_null()) {
        chunk["so8t"] = verdict;
    } else if (!is_several) {
        so8t_move(end, chunk, "so8t");
    }
    chunks.push_back(chunk);
}

json so8t_api_results::chunks(const json & result, bool is_last) {
    json chunks = json::array();
    json usage; // of a choice that ends
    for (json chunk : result.is_array() ? result : json::array({result})) {
        if (chunk.at("choices").empty()) {
            usage = chunk.at("usage");
            so8t_move(chunk, chunks.back(), "so8t");
            so8t_move(chunk, chunks.back(), "timings");
            continue;
        }
        for (auto & choice : chunk.at("choices")) {
            fill_choice(choice);
        }
        if (chunk.contains("usage")) {
            usage = chunk.at("usage");
            chunk.erase("usage");
        }
        if (include_usage && type == TASK_RESPONSE_TYPE_OAI_CHAT) { // not null in the schema of text completions
            chunk["usage"] = nullptr;
        }
        chunks.push_back(chunk);
    }
    if (!usage.is_null()) {
        end_choice(chunks, usage, is_last);
    }
    return chunks;
}

json so8t_api_results::events(const json & result, bool is_last) {
    if (result.is_null()) {
        return result;
    }
    switch (type) {
        case TASK_RESPONSE_TYPE_OAI_RESP:  return responses.fill(result);
        case TASK_RESPONSE_TYPE_ANTHROPIC: return messages.fill(result);
        case TASK_RESPONSE_TYPE_OAI_CMPL:
        case TASK_RESPONSE_TYPE_OAI_CHAT:  return chunks(result, is_last);
        default:                           return result;
    }
}

json so8t_api_results::error(const json & error) {
    switch (type) {
        case TASK_RESPONSE_TYPE_ANTHROPIC: return so8t_error_format(SO8T_API_ANTHROPIC, error);
        case TASK_RESPONSE_TYPE_OAI_RESP:
            return {{"type", "error"}, {"code", error.at("type")}, {"message", error.at("message")}, {"param", nullptr},
                {"sequence_number", responses.next_number()}};
        case TASK_RESPONSE_TYPE_OAI_CMPL:
        case TASK_RESPONSE_TYPE_OAI_CHAT: return so8t_error_format(SO8T_API_OPENAI, error);
        default:                          return error;
    }
}
