#include "so8t-answer-format.h"

#include "so8t-messages.h"
#include "so8t-responses.h"

#include "server-common.h"
#include "server-task.h"

// the text as it continues what was sent, for clients that join the pieces
static std::string so8t_continued(const so8t_answer & answer) {
    return answer.text.empty() ? "" : (answer.follows ? "\n\n" : "") + answer.text;
}

// for clients that look for the tags of a think block in the text themselves
static std::string so8t_raw(const so8t_answer & answer) {
    return answer.text.empty() ? "" : answer.close_think ? "\n</think>\n\n" + answer.text : so8t_continued(answer);
}

//
// Azure's annotations: a key for each label that is not allowed
//

static json so8t_filter_results(const so8t_answer & answer, so8t_part part) {
    const so8t_verdict & verdict = *answer.verdict;
    const auto & heads           = verdict.parts[part].heads;

    json results = json::object();
    for (size_t i = 0; i < heads.size(); ++i) {
        const auto & rule = verdict.policy->heads[i];
        for (size_t j = 0; j < heads[i].reached.size(); ++j) { // none of a head that was not asked
            if (rule.actions[j] != LLAMA_SO8T_ACTION_ALLOW) {
                results[rule.name + "/" + rule.labels[j]] = {
                    {"detected", (bool) heads[i].reached[j]}, {"filtered", false}};
            }
        }
    }
    const so8t_trigger & triggered = verdict.triggered;
    if (answer.enforced() && triggered.action != LLAMA_SO8T_ACTION_ALLOW && triggered.part == part) {
        const std::string label                                  = verdict.label_name(triggered.head, triggered.label);
        results[verdict.head_name(triggered.head) + "/" + label] = {{"detected", true}, {"filtered", true}};
    }
    return results;
}

static void so8t_annotate(json & response, json & choice, const so8t_answer & answer) {
    if (!answer.annotations) {
        return;
    }
    choice["content_filter_results"] = so8t_filter_results(
        answer, SO8T_PART_ANSWER); // first: choice is a part of response

    json prompt                       = json::object();
    prompt["prompt_index"]            = 0;
    prompt["content_filter_results"]  = so8t_filter_results(answer, SO8T_PART_PROMPT);
    response["prompt_filter_results"] = json::array({prompt});
}

//
// one object
//

// content of a message that is not streamed: nothing stands beside a refusal that has no words there
static void so8t_enforce_message(json & message, const so8t_answer & answer) {
    message.erase("tool_calls");
    if (answer.tells_text()) {
        message["content"] = answer.text;
    } else if (answer.refused() && (answer.has_form || !answer.text.empty())) {
        message["content"] = nullptr;
    }
    if (answer.tells_refusal()) {
        message["refusal"] = answer.refusal;
    }
}

static void so8t_format_object(json & response, task_response_type type, const so8t_answer & answer) {
    switch (type) {
        case TASK_RESPONSE_TYPE_NONE:
            if (response.contains("content")) { // response_fields may lack it
                response["content"] = response.at("content").get<std::string>() + so8t_raw(answer);
            }
            break;
        case TASK_RESPONSE_TYPE_OAI_CMPL: {
            json & choice  = response.at("choices").at(0);
            choice["text"] = choice.at("text").get<std::string>() + so8t_raw(answer);
            if (answer.refused()) {
                choice["finish_reason"] = "content_filter";
            }
            so8t_annotate(response, choice, answer);
        } break;
        case TASK_RESPONSE_TYPE_OAI_CHAT: {
            json & choice = response.at("choices").at(0);
            if (answer.enforced()) {
                so8t_enforce_message(choice.at("message"), answer);
                choice["finish_reason"] = answer.refused() ? "content_filter" : "stop";
            }
            so8t_annotate(response, choice, answer);
        } break;
        case TASK_RESPONSE_TYPE_OAI_RESP:
            if (answer.enforced()) {
                so8t_response_enforce(response, answer);
            }
            break;
        case TASK_RESPONSE_TYPE_ANTHROPIC:
            if (answer.enforced()) {
                so8t_message_enforce(response, answer);
            }
            break;
        case TASK_RESPONSE_TYPE_OAI_ASR:
            response["text"] = response.at("text").get<std::string>() + so8t_continued(answer);
            break;
        default: break;
    }
}

//
// the last events of a stream
//

// a chunk like the one it stands before, that carries the text
static json so8t_text_chunk(const json & next, task_response_type type, const so8t_answer & answer) {
    json chunk = json::object();
    for (const char * key : {"created", "id", "model", "system_fingerprint", "object", "index", "id_slot"}) {
        if (next.contains(key)) {
            chunk[key] = next.at(key);
        }
    }
    if (type == TASK_RESPONSE_TYPE_NONE) {
        chunk["content"] = so8t_raw(answer);
        chunk["tokens"]  = json::array();
        chunk["stop"]    = false;
        return chunk;
    }
    json choice             = json::object();
    choice["index"]         = next.at("choices").at(0).at("index");
    choice["finish_reason"] = nullptr;
    if (type == TASK_RESPONSE_TYPE_OAI_CMPL) {
        choice["text"]     = so8t_raw(answer);
        choice["logprobs"] = nullptr;
    } else {
        choice["delta"] = json::object();
        if (answer.tells_text()) {
            choice["delta"]["content"] = so8t_continued(answer);
        }
        if (answer.tells_refusal()) {
            choice["delta"]["refusal"] = answer.refusal;
        }
    }
    chunk["choices"] = json::array({choice});
    return chunk;
}

static json so8t_format_events(const json & response, task_response_type type, const so8t_answer & answer) {
    json events = json::array();
    for (const auto & given : response.is_array() ? response : json::array({response})) {
        json event = given;
        switch (type) {
            case TASK_RESPONSE_TYPE_NONE:
            case TASK_RESPONSE_TYPE_OAI_CMPL:
            case TASK_RESPONSE_TYPE_OAI_CHAT: {
                const bool has_choice = event.contains("choices") && !event.at("choices").empty();
                if (type != TASK_RESPONSE_TYPE_NONE &&
                    (!has_choice || event.at("choices").at(0).at("finish_reason").is_null())) {
                    break; // not the one that ends the answer
                }
                if (answer.enforced() && (type == TASK_RESPONSE_TYPE_OAI_CHAT || !answer.text.empty())) {
                    events.push_back(so8t_text_chunk(event, type, answer));
                }
                if (has_choice) {
                    json & choice = event.at("choices").at(0);
                    if (answer.enforced()) {
                        choice["finish_reason"] = answer.refused() ? "content_filter" : "stop";
                    }
                    so8t_annotate(event, choice, answer);
                }
            } break;
            case TASK_RESPONSE_TYPE_OAI_RESP:
                if (answer.enforced() && event.at("event") == "response.output_item.done" &&
                    event.at("data").at("item").at("type") == "function_call") {
                    continue; // it is not done
                }
                if (answer.enforced() && event.at("event") == "response.completed") {
                    so8t_response_enforce(events, event, answer);
                }
                break;
            case TASK_RESPONSE_TYPE_ANTHROPIC:
                if (answer.enforced() && event.at("event") == "message_delta") {
                    so8t_message_enforce(events, event.at("data"), answer);
                }
                break;
            case TASK_RESPONSE_TYPE_OAI_ASR: so8t_format_object(event, type, answer); break;
            default:                         break;
        }
        events.push_back(event);
    }
    return events;
}

// the verdict, or as much of it as the request asks for: only the raw endpoint takes response_fields
static void so8t_add_verdict(json & response, const server_task_result_cmpl_final & final, const json & verdict) {
    if (final.res_type != TASK_RESPONSE_TYPE_NONE || final.response_fields.empty()) {
        response["so8t"] = verdict;
        return;
    }
    const json picked = json_get_nested_values(final.response_fields, json::object({{"so8t", verdict}}));
    for (const auto & [path, value] : picked.items()) {
        response[path] = value;
    }
}

// an answer that ends where its tokens are up, of which llama.cpp says that it is complete
static void so8t_cut(json & response, const server_task_result_cmpl_final & final) {
    if (final.res_type != TASK_RESPONSE_TYPE_OAI_RESP || final.stop != STOP_TYPE_LIMIT ||
        final.so8t_answer.enforced()) {
        return;
    }
    if (!final.stream) {
        so8t_response_cut(response);
        return;
    }
    if (response.size() > 1 && response.at(response.size() - 2).at("event") == "response.output_item.done") {
        response.at(response.size() - 2).at("data").at("item")["status"] = "incomplete";
    }
    json & last             = response.back();
    last["event"]           = "response.incomplete";
    last.at("data")["type"] = "response.incomplete";
    so8t_response_cut(last.at("data").at("response"));
}

json so8t_answer_format(json response, const server_task_result_cmpl_final & final) {
    const auto & answer = final.so8t_answer;
    so8t_cut(response, final);
    if (!answer.verdict) {
        return response;
    }
    const json verdict = answer.verdict->to_json();
    if (!final.stream) {
        so8t_format_object(response, final.res_type, answer);
        so8t_add_verdict(response, final, verdict);
        if (response.contains("choices") && response.at("choices").at(0).value("index", 0) > 0) {
            response.at("choices").at(0)["so8t"] = verdict; // results of several choices are joined
        }
        return response;
    }
    so8t_answer streamed = answer;
    if (final.res_type == TASK_RESPONSE_TYPE_OAI_CHAT) {
        streamed.follows = !final.oaicompat_msg.content.empty(); // thoughts are sent apart
    }
    json events = so8t_format_events(response, final.res_type, streamed);

    const bool is_event = events.back().contains("event") && events.back().contains("data");
    so8t_add_verdict(is_event ? events.back().at("data") : events.back(), final, verdict);
    return events;
}
