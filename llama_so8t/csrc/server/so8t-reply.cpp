#include "so8t-reply.h"

#include "so8t-json.h"
#include "so8t-text-judge.h"

server_http_res_ptr so8t_ok(const json & data) {
    auto res  = std::make_unique<server_http_res>();
    res->data = safe_json_to_str(data);
    return res;
}

server_http_res_ptr so8t_error(int status, error_type type, const std::string & message) {
    auto res      = std::make_unique<server_http_res>();
    json error    = format_error_response(message, type);
    error["code"] = status;
    res->status   = status;
    res->data     = safe_json_to_str(json::object({{"error", error}}));
    return res;
}

server_http_context::handler_t so8t_handler(std::function<server_http_res_ptr(const server_http_req &)> handler) {
    return [handler = std::move(handler)](const server_http_req & req) {
        try {
            return handler(req);
        } catch (const std::invalid_argument & e) {
            return so8t_error(400, ERROR_TYPE_INVALID_REQUEST, e.what());
        } catch (const so8t_unavailable & e) {
            return so8t_error(503, ERROR_TYPE_UNAVAILABLE, e.what());
        } catch (const std::exception & e) {
            return so8t_error(500, ERROR_TYPE_SERVER, e.what());
        }
    };
}

json so8t_body(const server_http_req & req) {
    if (so8t_json_too_deep(req.body)) {
        throw so8t_bad_request("the body is nested too deep");
    }
    json body;
    try {
        body = json::parse(req.body);
    } catch (const std::exception & e) {
        throw so8t_bad_request(std::string("the body is no JSON: ") + e.what());
    }
    if (!body.is_object()) {
        throw so8t_bad_request("the body is not a JSON object");
    }
    return body;
}

json so8t_body(const server_http_req & req, const std::vector<const char *> & keys) {
    json body = so8t_body(req);
    for (const auto & [key, value] : body.items()) {
        bool known = false;
        for (const char * k : keys) {
            known |= key == k;
        }
        if (!known) {
            throw so8t_bad_request("the body has a key '" + key + "', expected some of " +
                                   json(std::vector<std::string>(keys.begin(), keys.end())).dump());
        }
    }
    return body;
}
