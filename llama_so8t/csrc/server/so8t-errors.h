#pragma once

#include <string>

class common_json;

// Errors as the API of an endpoint writes them. llama.cpp has one form, {"error": {"code": STATUS, "message", "type"}}, which
// typed clients of OpenAI and Anthropic cannot read: their code is a text or null, and what is wrong with a parameter.

// whose form an endpoint has
enum so8t_api {
    SO8T_API_LLAMA,
    SO8T_API_OPENAI,
    SO8T_API_ANTHROPIC,
};

so8t_api so8t_api_of(const std::string & path);

// error: {"code", "message", "type", ...} of llama.cpp. OpenAI: {"message", "type", "param", "code", ...};
// Anthropic: {"type": "error", "error": {"type", "message"}, "request_id"}
common_json so8t_error_format(so8t_api api, const common_json & error);

// the body of a response with this status, made anew for the endpoint; as it is where it has no such error in it
std::string so8t_error_body(const std::string & path, int status, const std::string & body);
