#include "so8t-routes.h"

#include "so8t-client.h"
#include "so8t-moderations.h"
#include "so8t-reply.h"
#include "so8t-sha256.h"
#include "so8t-ui.h"

#include "server-common.h"
#include "server-context.h"
#include "server-http.h"

#include "base64.hpp"

#include <cstdlib>
#include <functional>

static const size_t SO8T_MAX_NAME    = 256; // bytes of a reviewer's name
static const size_t SO8T_MAX_COMMENT = 4096;
static const size_t SO8T_MAX_EDITED  = 1 << 20;
static const long SO8T_MAX_TAIL      = 1000;

//
// judging
//

void so8t_need_heads(const so8t_server & server) {
    if (!server.has_heads()) {
        throw so8t_bad_request("the model has no heads that could judge a text");
    }
}

// the verdict of a conversation and, if it is not null, of an answer to it
static so8t_verdict so8t_judge_text(
    so8t_server & server, const server_http_req & req, const json & messages, const std::string * answer) {
    so8t_verdict verdict;
    try {
        verdict = server.judge(common_chat_msgs_parse_oaicompat(messages), answer, false, req.should_stop);
    } catch (const so8t_unavailable &) {
        throw;
    } catch (const std::exception & e) { // of the template, or of what stands in the messages
        throw so8t_bad_request(e.what());
    }
    if (verdict.enforced == SO8T_ENFORCED_UNAVAILABLE) {
        throw so8t_unavailable("the audit log cannot be written, so nothing is judged (--so8t-audit-on-error)");
    }
    return verdict;
}

static server_http_res_ptr so8t_post_judge(so8t_server & server, const server_http_req & req) {
    so8t_need_heads(server);
    const json body = so8t_body(req, {"messages", "model"});
    if (!body.contains("messages") || !body.at("messages").is_array() || body.at("messages").empty()) {
        throw so8t_bad_request("\"messages\" is missing, expected a list of {\"role\", \"content\"}");
    }
    json messages     = body.at("messages");
    const json & last = messages.back();
    if (!last.is_object() || !last.contains("role") || last.value("role", json()) != "assistant") {
        return so8t_ok(json::object({{"so8t", so8t_judge_text(server, req, messages, nullptr).to_json()}}));
    }
    if (!last.contains("content") || !last.at("content").is_string() || messages.size() < 2) {
        throw so8t_bad_request(
            "the last message is an answer to judge: expected a text as its \"content\", and a message before it");
    }
    const std::string answer = last.at("content").get<std::string>();
    messages.erase(messages.size() - 1);
    return so8t_ok(json::object({{"so8t", so8t_judge_text(server, req, messages, &answer).to_json()}}));
}

static server_http_res_ptr so8t_post_moderations(so8t_server & server, const server_http_req & req) {
    so8t_need_heads(server);
    json results = json::array();
    for (const auto & messages : so8t_moderation_inputs(so8t_body(req))) {
        results.push_back(so8t_moderation(so8t_judge_text(server, req, messages, nullptr)));
    }
    return so8t_ok({
        {"id", "modr-" + random_string()},
        {"model", server.model_name()},
        {"results", results},
    });
}

//
// escalations, audit
//

static std::string so8t_text(const json & body, const char * key, size_t max_bytes) {
    const json value = body.contains(key) ? body.at(key) : json("");
    if (!value.is_string() || value.get<std::string>().size() > max_bytes) {
        throw so8t_bad_request(string_format("\"%s\" is not a text of at most %zu bytes", key, max_bytes));
    }
    return value.get<std::string>();
}

static server_http_res_ptr so8t_get_escalations(const so8t_server & server) {
    so8t_escalations * escalations = server.escalations();
    return so8t_ok({
        {"escalations", escalations ? escalations->list() : json::array()},
        {"wait", server.escalation_wait()},
    });
}

// throws so8t_bad_request: it is none
static so8t_decision so8t_read_decision(const server_http_req & req) {
    const json body          = so8t_body(req, {"action", "reviewer", "comment", "text"});
    const std::string action = so8t_text(body, "action", SO8T_MAX_NAME);

    so8t_decision decision = {action == "allow", {}, so8t_text(body, "reviewer", SO8T_MAX_NAME),
        so8t_text(body, "comment", SO8T_MAX_COMMENT)};
    if (action != "allow" && action != "deny") {
        throw so8t_bad_request("\"action\" is '" + action + "', expected allow or deny");
    }
    if (body.contains("text")) {
        decision.text = so8t_text(body, "text", SO8T_MAX_EDITED);
        if (!decision.allow || decision.text->empty()) {
            throw so8t_bad_request("\"text\" is delivered in place of an answer that is allowed: expected the action "
                                   "allow, and a text that is not empty");
        }
    }
    return decision;
}

// The name that the key of the request proves; without a file of reviewers, the one that the request says. Empty: the
// request has no key that is known, or the name of another reviewer.
static std::string so8t_reviewer(const so8t_server & server, const server_http_req & req, const std::string & said) {
    if (!server.reviewers()) {
        if (said.empty()) {
            throw so8t_bad_request("\"reviewer\" is missing: the name of the person who decides");
        }
        return said;
    }
    try {
        const std::string name = server.reviewers()->name_of(so8t_header(req, "x-so8t-reviewer-key"));
        return said.empty() || said == name ? name : "";
    } catch (const std::exception & e) { // the file was broken meanwhile
        throw so8t_unavailable(e.what());
    }
}

static server_http_res_ptr so8t_post_escalation(const so8t_server & server, const server_http_req & req) {
    so8t_decision decision = so8t_read_decision(req);
    decision.reviewer      = so8t_reviewer(server, req, decision.reviewer);
    if (decision.reviewer.empty()) {
        return so8t_error(403, ERROR_TYPE_PERMISSION,
            "the header X-So8t-Reviewer-Key has no key of a reviewer, or \"reviewer\" is not the name of its owner "
            "(--so8t-reviewers)");
    }
    so8t_escalation entry;
    so8t_escalations * escalations = server.escalations();
    switch (escalations ? escalations->decide(req.get_param("id"), decision, entry) : so8t_escalations::UNKNOWN) {
        case so8t_escalations::DECIDED: return so8t_ok(entry.to_json(true));
        case so8t_escalations::UNKNOWN: return so8t_error(404, ERROR_TYPE_NOT_FOUND, "no escalation has this id");
        case so8t_escalations::TOO_LATE:
            return so8t_error(409, ERROR_TYPE_INVALID_REQUEST,
                std::string("this escalation is over: ") + so8t_escalation_status_name(entry.status));
        case so8t_escalations::GONE:
            return so8t_error(410, ERROR_TYPE_INVALID_REQUEST,
                entry.status == SO8T_ESCALATION_GONE ?
                    "the client went away; if it repeats its request in time, this escalation is pending again" :
                    "this escalation is over: the client went away and did not come back");
        case so8t_escalations::NOT_EDITABLE:
            throw so8t_bad_request("this answer has a form that another text could break (a grammar, a JSON schema or "
                                   "tools): it can be allowed or denied as it is");
        case so8t_escalations::NOT_A_CONTINUATION:
            throw so8t_bad_request("the client has the part \"sent\" of this answer already, so \"text\" has to "
                                   "begin with it");
        case so8t_escalations::NOT_RECORDED:
            return so8t_error(503, ERROR_TYPE_UNAVAILABLE, "the audit log cannot be written, so nothing is released");
    }
    return nullptr;
}

static server_http_res_ptr so8t_get_audit(const so8t_server & server, const server_http_req & req) {
    const so8t_audit * audit = server.audit();
    if (!audit) {
        return so8t_error(404, ERROR_TYPE_NOT_FOUND, "the server writes no audit log (--so8t-audit FILE)");
    }
    const std::string tail = req.get_param("tail", "50");
    char * end             = nullptr;
    const long n           = std::strtol(tail.c_str(), &end, 10);
    if (tail.empty() || end != tail.c_str() + tail.size() || n < 1 || n > SO8T_MAX_TAIL) {
        throw so8t_bad_request(
            string_format("tail is '%s', expected a number from 1 to %ld", tail.c_str(), SO8T_MAX_TAIL));
    }
    return so8t_ok({{"path", audit->path()}, {"lines", audit->tail(n)}});
}

// the source of a Content-Security-Policy that allows just this one element of the page
static std::string so8t_csp_hash(const std::string & page, const std::string & tag) {
    const size_t begin = page.find("<" + tag + ">") + tag.size() + 2;
    const size_t end   = page.find("</" + tag + ">", begin);
    return "'sha256-" + base64::encode(so8t_sha256().update(page.data() + begin, end - begin).final()) + "'";
}

server_http_res_ptr so8t_get_ui() {
    static const std::string page(so8t_ui_html, so8t_ui_html_size);
    static const std::string csp = "default-src 'none'; script-src " + so8t_csp_hash(page, "script") + "; style-src " +
                                   so8t_csp_hash(page, "style") +
                                   "; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

    auto res                                = std::make_unique<server_http_res>();
    res->content_type                       = "text/html; charset=utf-8";
    res->data                               = page;
    res->headers["Content-Security-Policy"] = csp;
    res->headers["Referrer-Policy"]         = "no-referrer";
    res->headers["X-Content-Type-Options"]  = "nosniff";
    res->headers["Cache-Control"]           = "no-cache";
    return res;
}

void so8t_register_routes(const server_http_context & http, so8t_server & server) {
    http.get("/so8t", so8t_handler([&](const server_http_req &) { return so8t_ok(server.info()); }));
    http.get("/so8t/ui", so8t_handler([](const server_http_req &) { return so8t_get_ui(); }));
    http.get("/so8t/audit", so8t_handler([&](const server_http_req & req) { return so8t_get_audit(server, req); }));
    http.get("/so8t/escalations", so8t_handler([&](const server_http_req &) { return so8t_get_escalations(server); }));
    http.post("/so8t/escalations/:id",
        so8t_handler([&](const server_http_req & req) { return so8t_post_escalation(server, req); }));
    http.post("/so8t/judge", so8t_handler([&](const server_http_req & req) { return so8t_post_judge(server, req); }));
    const auto moderations = so8t_handler(
        [&](const server_http_req & req) { return so8t_post_moderations(server, req); });
    http.post("/v1/moderations", moderations);
    http.post("/moderations", moderations);
}
