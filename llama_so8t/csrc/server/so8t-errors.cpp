#include "so8t-errors.h"

#include "so8t-json.h"

#include "json.h"

so8t_api so8t_api_of(const std::string & path) {
    const auto has = [&](const char * part) { return path.find(part) != std::string::npos; };
    if (has("/v1/messages")) {
        return SO8T_API_ANTHROPIC;
    }
    const bool is_openai = has("/v1/") || has("/chat/completions") || has("/moderations") || has("/responses");
    return is_openai ? SO8T_API_OPENAI : SO8T_API_LLAMA;
}

// docs.anthropic.com/en/api/errors, 2026-11-28
static const char * so8t_anthropic_type(const std::string & type) {
    const struct {
        const char * llama;
        const char * anthropic;
    } rows[] = {
        {"invalid_request_error", "invalid_request_error"},
        {"exceed_context_size_error", "invalid_request_error"},
        {"not_supported_error", "invalid_request_error"},
        {"authentication_error", "authentication_error"},
        {"permission_error", "permission_error"},
        {"not_found_error", "not_found_error"},
        {"unavailable_error", "overloaded_error"},
    };
    for (const auto & row : rows) {
        if (type == row.llama) {
            return row.anthropic;
        }
    }
    return "api_error";
}

// the codes that clients of OpenAI look for
static common_json so8t_openai_code(const std::string & type) {
    return type == "authentication_error"      ? common_json("invalid_api_key") :
           type == "exceed_context_size_error" ? common_json("context_length_exceeded") :
                                                 common_json(nullptr);
}

common_json so8t_error_format(so8t_api api, const common_json & error) {
    const std::string message = error.value("message", "");
    const std::string type    = error.value("type", "server_error");
    if (api == SO8T_API_ANTHROPIC) {
        return common_json::object({
            {"type", "error"},
            {"error", {{"type", so8t_anthropic_type(type)}, {"message", message}}},
            {"request_id", nullptr},
        });
    }
    if (api == SO8T_API_LLAMA) {
        return error;
    }
    common_json result = common_json::object(
        {{"message", message}, {"type", type}, {"param", nullptr}, {"code", so8t_openai_code(type)}});
    so8t_json_fill(result, error);
    return result;
}

std::string so8t_error_body(const std::string & path, int status, const std::string & body) {
    const so8t_api api = so8t_api_of(path);
    if (api == SO8T_API_LLAMA ||
        body.empty()) { // the router passes on the errors of another server: they have no body yet
        return body;
    }
    const common_json given = common_json::parse_no_throw(body);
    common_json error       = common_json::object({
        {"message", body},
        {"type", status < 500 ? "invalid_request_error" : "server_error"},
    });
    if (!given.is_discarded()) {
        if (!given.is_object() || !given.contains("error") || !given.at("error").is_object()) {
            return body;
        }
        error = given.at("error");
    }
    const common_json result = so8t_error_format(api, error);
    return (api == SO8T_API_OPENAI ? common_json::object({{"error", result}}) : result).dump_safe();
}
