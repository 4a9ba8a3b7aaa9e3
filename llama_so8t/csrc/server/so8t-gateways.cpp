#include "so8t-gateways.h"

#include "so8t-reply.h"
#include "so8t-routes.h"

#include <algorithm>

static const size_t SO8T_MAX_TEXTS = 256;

//
// what a gateway sends
//

// a list of the body, empty where there is none
static json so8t_list(const json & body, const char * key) {
    const json list = body.contains(key) ? body.at(key) : json(nullptr);
    if (!list.is_null() && (!list.is_array() || list.size() > SO8T_MAX_TEXTS)) {
        throw so8t_bad_request(string_format("\"%s\" is not a list of at most %zu", key, SO8T_MAX_TEXTS));
    }
    return list.is_null() ? json::array() : list;
}

// what heads can read of a content: a text, or the texts of its parts
static json so8t_text_parts(const json & content) {
    if (!content.is_array()) {
        return content;
    }
    json parts = json::array();
    for (const auto & part : content) {
        const std::string type = part.is_object() ? json_value(part, "type", std::string()) : "";
        if (type == "text" || type == "input_text" || type == "output_text") {
            parts.push_back({{"type", "text"}, {"text", part.value("text", json(""))}});
        }
    }
    return parts;
}

// messages of OpenAI's format as those that llama.cpp knows
static std::vector<common_chat_msg> so8t_messages(const json & list) {
    static const std::vector<std::pair<std::string, std::string>> same_roles = {
        {"developer", "system"},
        {"function", "tool"},
    };
    json messages = json::array();
    for (json message : list) {
        if (!message.is_object() || !message.contains("role") || !message.at("role").is_string()) {
            throw so8t_bad_request("a message is not an object with a \"role\" and a \"content\"");
        }
        for (const auto & [theirs, ours] : same_roles) {
            if (message.at("role") == theirs) {
                message["role"] = ours;
            }
        }
        if (message.contains("content")) {
            message["content"] = so8t_text_parts(message.at("content"));
        }
        messages.push_back(message);
    }
    return common_chat_msgs_parse_oaicompat(messages);
}

//
// verdicts
//

// the strictest of what was judged for a request
class so8t_gateway_judge {
  public:
    so8t_gateway_judge(so8t_server & server, const so8t_should_stop & should_stop) :
        server(server),
        should_stop(should_stop) {}

    // its turns in their context and alone, and what stands for answers in it
    void chat(const json & list) {
        if (!list.empty()) {
            take(server.judge_chat(so8t_messages(list), should_stop));
        }
    }

    void prompt(const std::string & text) { take(server.judge({user(text)}, nullptr, false, should_stop)); }

    // the question is not known here, so it is a blank one; not an empty one, of which some templates make no token
    void answer(const std::string & text) {
        if (!text.empty()) {
            take(server.judge({user(" ")}, &text, true, should_stop));
        }
    }

    bool is_blocked() const { return action != LLAMA_SO8T_ACTION_ALLOW; }

    const std::string & text() const {
        return action == LLAMA_SO8T_ACTION_REFUSE ? server.get_policy()->refusal : server.get_policy()->escalation;
    }

    const std::string & reason() const { return why; }

  private:
    static common_chat_msg user(const std::string & text) {
        common_chat_msg message;
        message.role    = "user";
        message.content = text;
        return message;
    }

    void take(const so8t_verdict & verdict) {
        if (verdict.enforced == SO8T_ENFORCED_UNAVAILABLE) {
            throw so8t_unavailable("the audit log cannot be written, so nothing is judged (--so8t-audit-on-error)");
        }
        const so8t_trigger & triggered = verdict.triggered;
        if (triggered.action > action) {
            action = triggered.action;
            why    = std::string("so8t: ") + llama_so8t_action_name(action) + ": " + verdict.head_name(triggered.head) +
                     "/" + verdict.label_name(triggered.head, triggered.label);
        }
    }

    so8t_server & server;
    const so8t_should_stop & should_stop;
    llama_so8t_action action = LLAMA_SO8T_ACTION_ALLOW;
    std::string why;
};

//
// LiteLLM
//

static bool so8t_is_in_messages(const json & messages, const std::string & text) {
    return std::any_of(messages.begin(), messages.end(), [&](const json & message) {
        const json content = message.is_object() ? so8t_text_parts(message.value("content", json())) : json();
        return content == text ||
               (content.is_array() && std::any_of(content.begin(), content.end(),
                                          [&](const json & part) { return part.at("text") == text; }));
    });
}

static void so8t_judge_litellm(const json & body, so8t_gateway_judge & judge) {
    const json type = body.value("input_type", json());
    if (type != "request" && type != "response") {
        throw so8t_bad_request("\"input_type\" is " + type.dump_safe() + ", expected \"request\" or \"response\"");
    }
    const json messages = so8t_list(body, "structured_messages");
    if (type == "request") {
        judge.chat(messages);
    }
    for (const auto & text : so8t_list(body, "texts")) {
        if (!text.is_string()) {
            throw so8t_bad_request("\"texts\" is not a list of texts");
        }
        if (type == "response") {
            judge.answer(text.get<std::string>());
        } else if (!so8t_is_in_messages(messages, text.get<std::string>())) {
            judge.prompt(text.get<std::string>());
        }
    }
    for (const auto & call : so8t_list(body, "tool_calls")) {
        const json function  = call.is_object() ? call.value("function", json()) : json();
        const json arguments = function.is_object() ? function.value("arguments", json()) : json();
        if (type == "response" && arguments.is_string()) {
            judge.answer(arguments.get<std::string>());
        }
    }
}

static json so8t_litellm(so8t_gateway_judge & judge, const json & body) {
    so8t_judge_litellm(body, judge);
    if (!judge.is_blocked()) {
        return json::object({{"action", "NONE"}});
    }
    return json::object({{"action", "BLOCKED"}, {"blocked_reason", judge.text()}});
}

//
// agentgateway
//

// The kind of an action is told by its fields alone: one with "body" and "status_code" rejects, all others pass.
static json so8t_agentgateway(const so8t_gateway_judge & judge) {
    if (!judge.is_blocked()) {
        return json::object({{"action", {{"reason", "so8t: allow"}}}});
    }
    return json::object({{"action", {{"body", judge.text()}, {"status_code", 403}, {"reason", judge.reason()}}}});
}

static json so8t_in_body(const json & request, const char * key) {
    const json body = request.value("body", json());
    if (!body.is_object() || !body.contains(key)) {
        throw so8t_bad_request(string_format("expected {\"body\": {\"%s\": [...]}}", key));
    }
    return so8t_list(body, key);
}

static json so8t_agentgateway_request(so8t_gateway_judge & judge, const json & request) {
    judge.chat(so8t_in_body(request, "messages"));
    return so8t_agentgateway(judge);
}

static json so8t_agentgateway_response(so8t_gateway_judge & judge, const json & request) {
    for (const auto & choice : so8t_in_body(request, "choices")) {
        const json message = choice.is_object() ? choice.value("message", json()) : json();
        const json content = message.is_object() ? message.value("content", json()) : json(false);
        if (!content.is_string() && !content.is_null()) {
            throw so8t_bad_request("a choice is not {\"message\": {\"role\", \"content\"}} with a text");
        }
        if (content.is_string()) {
            judge.answer(content.get<std::string>());
        }
    }
    return so8t_agentgateway(judge);
}

//
// endpoints
//

const std::vector<so8t_gateway> & so8t_gateways() {
    static const std::vector<so8t_gateway> gateways = {
        {"litellm", {"/beta/litellm_basic_guardrail_api"}},
        {"agentgateway", {"/request", "/response"}},
    };
    return gateways;
}

using so8t_gateway_function = json (*)(so8t_gateway_judge &, const json & body);

static so8t_gateway_function so8t_function_of(const std::string & path) {
    return path == "/request"  ? so8t_agentgateway_request :
           path == "/response" ? so8t_agentgateway_response :
                                 so8t_litellm;
}

void so8t_register_gateways(
    const server_http_context & http, so8t_server & server, const std::vector<std::string> & names) {
    for (const auto & gateway : so8t_gateways()) {
        if (std::find(names.begin(), names.end(), gateway.name) == names.end()) {
            continue;
        }
        for (const char * path : gateway.paths) {
            const auto answer = so8t_function_of(path);
            http.post(path, so8t_handler([&, answer](const server_http_req & req) {
                so8t_need_heads(server);
                const json body = so8t_body(req);
                so8t_gateway_judge judge(server, req.should_stop);
                try {
                    return so8t_ok(answer(judge, body));
                } catch (const so8t_unavailable &) {
                    throw;
                } catch (const std::exception & e) { // of the template, or of what stands in the messages
                    throw so8t_bad_request(e.what());
                }
            }));
        }
    }
}
