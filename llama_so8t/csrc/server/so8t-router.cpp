#include "so8t-router.h"

#include "so8t-audit-pattern.h"
#include "so8t-gateways.h"
#include "so8t-reply.h"
#include "so8t-routes.h"

#include "common.h"
#include "log.h"
#include "server-models.h"

#include <cpp-httplib/httplib.h>

#include <algorithm>
#include <future>

static const int SO8T_ASK_SECONDS = 10; // one process that does not answer must not hide what the others say

// what one process says
struct so8t_child_reply {
    std::string model;
    int status = 0; // 0: nothing
    json body;
};

class so8t_router {
  public:
    so8t_router(server_models & models, const common_params & params) :
        models(models),
        params(params) {}

    // the model that a request names, loaded if it is to be
    std::string model(const server_http_req & req, const std::string & name) {
        if (name.empty()) {
            throw so8t_bad_request("the request names no model: expected \"model\" in the body, or ?model=NAME");
        }
        const auto meta = models.get_meta(name);
        if (!meta) {
            throw so8t_bad_request("there is no model '" + name + "' here; GET /v1/models lists them");
        }
        if (params.models_autoload) {
            models.ensure_model_ready(meta->name, req.should_stop);
        } else if (!meta->is_running()) {
            throw so8t_bad_request("the model '" + name + "' is not loaded");
        }
        return meta->name;
    }

    server_http_res_ptr pass(const server_http_req & req, const char * method, const std::string & name) {
        return models.proxy_request(req, method, model(req, name), std::string(method) == "POST");
    }

    // Asks every process that has its model, at the same time; path: without the prefix of all endpoints
    std::vector<so8t_child_reply> ask_all(const server_http_req & req, const std::string & path) {
        std::vector<std::future<so8t_child_reply>> replies;
        for (const auto & meta : models.get_all_meta()) {
            if (meta.is_ready_or_sleep()) {
                replies.push_back(std::async(std::launch::async, [this, &req, &path, meta]() {
                    auto client = connect(meta.port);
                    return read(meta.name, client.Get(params.api_prefix + path, headers(req)));
                }));
            }
        }
        std::vector<so8t_child_reply> result;
        for (auto & reply : replies) {
            result.push_back(reply.get());
        }
        return result;
    }

    so8t_child_reply post(const server_model_meta & meta, const server_http_req & req, const std::string & path) const {
        auto client = connect(meta.port);
        return read(meta.name, client.Post(params.api_prefix + path, headers(req), req.body, "application/json"));
    }

    server_models & models;
    const common_params & params;

  private:
    static httplib::Client connect(int port) {
        httplib::Client client("127.0.0.1", port);
        client.set_connection_timeout(SO8T_ASK_SECONDS);
        client.set_read_timeout(SO8T_ASK_SECONDS);
        client.set_write_timeout(SO8T_ASK_SECONDS);
        return client;
    }

    // a key that comes from the environment is asked for by the processes, too
    static httplib::Headers headers(const server_http_req & req) {
        httplib::Headers result;
        for (const auto & [name, value] : req.headers) {
            std::string lowered = name;
            std::transform(lowered.begin(), lowered.end(), lowered.begin(), ::tolower);
            if (lowered == "authorization" || lowered == "x-api-key" || lowered == "x-so8t-reviewer-key") {
                result.emplace(name, value);
            }
        }
        return result;
    }

    static so8t_child_reply read(const std::string & model, const httplib::Result & result) {
        if (!result) {
            return {model, 0, nullptr};
        }
        const json body = json::parse_no_throw(result->body);
        return {model, body.is_discarded() ? 0 : result->status, body.is_discarded() ? json(nullptr) : body};
    }
};

// GET /so8t
static server_http_res_ptr so8t_get_models(so8t_router & router, const server_http_req & req) {
    json models = json::object();
    for (const auto & meta : router.models.get_all_meta()) {
        if (!meta.hidden) {
            models[meta.name] = {{"status", server_model_status_to_string(meta.status)}, {"so8t", nullptr}};
        }
    }
    for (const auto & reply : router.ask_all(req, "/so8t")) {
        if (reply.status == 200 && models.contains(reply.model)) {
            models[reply.model]["so8t"] = reply.body;
        }
    }
    return so8t_ok(json::object({{"models", models}}));
}

// GET /so8t/escalations: of all models, in the order in which they were held
static server_http_res_ptr so8t_get_all_escalations(so8t_router & router, const server_http_req & req) {
    std::vector<json> entries;
    json silent = json::array();
    double wait = 0;
    for (const auto & reply : router.ask_all(req, "/so8t/escalations")) {
        if (reply.status != 200) {
            silent.push_back(reply.model);
            continue;
        }
        wait = std::max(wait, json_value(reply.body, "wait", 0.0));
        for (json entry : reply.body.at("escalations")) {
            entry["model"] = reply.model;
            entries.push_back(std::move(entry));
        }
    }
    std::stable_sort(entries.begin(), entries.end(),
        [](const json & a, const json & b) { return json_value(a, "created", 0.0) < json_value(b, "created", 0.0); });
    json list = json::array();
    for (const auto & entry : entries) {
        list.push_back(entry);
    }
    return so8t_ok(json::object({{"escalations", list}, {"wait", wait}, {"silent", silent}}));
}

// POST /so8t/escalations/ID: ids are unique over all processes, so that at most one of them knows it
static server_http_res_ptr so8t_post_to_its_model(so8t_router & router, const server_http_req & req) {
    const std::string id = req.get_param("id");
    const bool is_id     = std::all_of(
        id.begin(), id.end(), [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; });
    const std::string only = req.get_param("model");
    std::string silent;
    for (const auto & meta : router.models.get_all_meta()) {
        const bool is_asked = only.empty() || only == meta.name || meta.aliases.count(only) > 0;
        if (!is_id || !is_asked || !meta.is_ready_or_sleep()) {
            continue;
        }
        const auto reply = router.post(meta, req, "/so8t/escalations/" + id);
        if (reply.status == 0) {
            silent = meta.name;
        } else if (reply.status != 404) {
            json body = reply.body;
            if (reply.status == 200) {
                body["model"] = meta.name;
            }
            auto res    = so8t_ok(body);
            res->status = reply.status;
            return res;
        }
    }
    if (!silent.empty()) {
        throw so8t_unavailable("no model that answers has this escalation, and '" + silent + "' does not answer");
    }
    return so8t_error(404, ERROR_TYPE_NOT_FOUND, "no escalation has this id");
}

static std::string so8t_model_of_body(const json & body) {
    return body.contains("model") && body.at("model").is_string() ? body.at("model").get<std::string>() : "";
}

// The endpoints of gateways: their bodies name a model as well, which is the one that the gateway asks for the answer.
static void so8t_route_gateways(
    const server_http_context & http, const std::shared_ptr<so8t_router> & router, const common_params & params) {
    for (const auto & gateway : so8t_gateways()) {
        const auto & names = params.so8t.gateways;
        if (std::find(names.begin(), names.end(), gateway.name) == names.end()) {
            continue;
        }
        for (const char * path : gateway.paths) {
            http.post(path, so8t_handler([router](const server_http_req & req) {
                std::string name    = req.get_param("model");
                const json settings = so8t_body(req).value("additional_provider_specific_params", json());
                if (name.empty() && settings.is_object()) {
                    name = so8t_model_of_body(settings);
                }
                return router->pass(req, "POST", name);
            }));
        }
    }
}

static void so8t_check_router(const common_params & params) {
    const auto & audit = params.so8t.audit;
    if (!audit.file.empty() && !so8t_is_audit_pattern(audit)) {
        throw std::invalid_argument("so8t: several models cannot write the audit log '" + audit.file +
                                    "': put {model} into its name, as in 'audit-{model}.jsonl'");
    }
}

bool so8t_register_router(const server_http_context & http, server_models & models, const common_params & params) {
    try {
        so8t_check_router(params);
    } catch (const std::exception & e) {
        LOG_ERR("error: %s\n", e.what());
        return false;
    }
    const auto router    = std::make_shared<so8t_router>(models, params);
    const auto get_model = [router](const server_http_req & req) {
        return router->pass(req, "GET", req.get_param("model"));
    };
    const auto post_model = so8t_handler([router](const server_http_req & req) {
        const std::string name = req.get_param("model");
        return router->pass(req, "POST", name.empty() ? so8t_model_of_body(so8t_body(req)) : name);
    });
    http.get("/so8t", so8t_handler([router, get_model](const server_http_req & req) {
        return req.get_param("model").empty() ? so8t_get_models(*router, req) : get_model(req);
    }));
    http.get("/so8t/ui", so8t_handler([](const server_http_req &) { return so8t_get_ui(); }));
    http.get("/so8t/audit", so8t_handler(get_model));
    http.get("/so8t/escalations",
        so8t_handler([router](const server_http_req & req) { return so8t_get_all_escalations(*router, req); }));
    http.post("/so8t/escalations/:id",
        so8t_handler([router](const server_http_req & req) { return so8t_post_to_its_model(*router, req); }));
    for (const char * path : {"/so8t/judge", "/v1/moderations", "/moderations"}) {
        http.post(path, post_model);
    }
    so8t_route_gateways(http, router, params);
    return true;
}
