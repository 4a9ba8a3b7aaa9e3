#include "so8t-otlp.h"

#include "common.h"
#include "json.h"

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>
#include <stdexcept>

using json = common_json;

static const char * SO8T_EVENT_NAME            = "gen_ai.security.finding";
static const char * SO8T_EVENT_NAME_ESCALATION = "so8t.escalation";

enum so8t_severity { SO8T_SEVERITY_INFO = 9, SO8T_SEVERITY_WARN = 13 }; // of OpenTelemetry

//
// values and attributes in the JSON form of OTLP: numbers of 64 bits are texts
//

static json so8t_otlp_text(const std::string & value) {
    return {{"stringValue", value}};
}

static json so8t_otlp_int(int64_t value) {
    return {{"intValue", std::to_string(value)}};
}

class so8t_attributes {
  public:
    void add(const std::string & key, const json & value) {
        list.push_back(json::object({{"key", key}, {"value", value}}));
    }
    void text(const std::string & key, const std::string & value) { add(key, so8t_otlp_text(value)); }
    void integer(const std::string & key, int64_t value) { add(key, so8t_otlp_int(value)); }
    void flag(const std::string & key, bool value) { add(key, json::object({{"boolValue", value}})); }
    void probability(const std::string & key, float value) {
        if (std::isfinite(value)) {
            add(key, json::object({{"doubleValue", so8t_probability_json(value)}}));
        }
    }

    json list = json::array();
};

static std::string so8t_now() {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::to_string(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

static std::string so8t_log_record(const char * event, so8t_severity severity, const so8t_attributes & attributes) {
    const std::string now = so8t_now();
    return json::object({
                            {"timeUnixNano", now},
                            {"observedTimeUnixNano", now},
                            {"severityNumber", (int) severity},
                            {"severityText", severity == SO8T_SEVERITY_INFO ? "INFO" : "WARN"},
                            {"eventName", event},
                            {"attributes", attributes.list},
                        })
        .dump_safe();
}

//
// the variables of OpenTelemetry
//

static std::string so8t_variable(const char * name) {
    const char * value = std::getenv(name);
    return value ? value : "";
}

static std::string so8t_percent_decoded(const char * variable, const std::string & text) {
    std::string result;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            result += text[i];
            continue;
        }
        const std::string digits = text.substr(i + 1, 2);
        if (digits.size() != 2 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
            throw std::invalid_argument(
                std::string("so8t: ") + variable + ": found '%" + digits + "', expected two hex digits behind %");
        }
        result += (char) std::stoi(digits, nullptr, 16);
        i      += 2;
    }
    return result;
}

// "key=value,key=value", as in the header Baggage
static so8t_outbox::headers so8t_pairs(const char * variable) {
    so8t_outbox::headers pairs;
    for (const auto & item : string_split<std::string>(so8t_variable(variable), ',')) {
        const std::string pair = string_strip(item);
        const size_t equals    = pair.find('=');
        if (pair.empty()) {
            continue;
        }
        const std::string key   = string_strip(pair.substr(0, equals));
        const std::string value = equals == std::string::npos ? "" : string_strip(pair.substr(equals + 1));
        if (key.empty() || equals == std::string::npos) { // the value may be a secret
            throw std::invalid_argument(std::string("so8t: ") + variable + ": found an item that is not KEY=VALUE");
        }
        pairs.emplace_back(key, so8t_percent_decoded(variable, value));
    }
    return pairs;
}

static std::chrono::milliseconds so8t_timeout() {
    const std::string text = so8t_variable("OTEL_EXPORTER_OTLP_TIMEOUT");
    if (text.empty()) {
        return std::chrono::milliseconds(10000);
    }
    if (text.size() > 6 || text.find_first_not_of("0123456789") != std::string::npos || text == "0") {
        throw std::invalid_argument("so8t: OTEL_EXPORTER_OTLP_TIMEOUT: found '" + text + "', expected milliseconds");
    }
    return std::chrono::milliseconds(std::stoi(text));
}

// the part of a message before its records
static std::string so8t_resource() {
    std::map<std::string, std::string> values = {{"service.name", "llama-server"}};
    for (const auto & [key, value] : so8t_pairs("OTEL_RESOURCE_ATTRIBUTES")) {
        values[key] = value;
    }
    if (const std::string name = so8t_variable("OTEL_SERVICE_NAME"); !name.empty()) {
        values["service.name"] = name;
    }
    so8t_attributes attributes;
    for (const auto & [key, value] : values) {
        attributes.text(key, value);
    }
    return "{\"resourceLogs\":[{\"resource\":{\"attributes\":" + attributes.list.dump_safe() +
           "},\"scopeLogs\":[{\"scope\":{\"name\":\"so8t\"},\"logRecords\":[";
}

static uint64_t so8t_rejected(const std::string & reply) {
    const json body    = json::parse_no_throw(reply);
    const json partial = body.is_object() ? body.value("partialSuccess", json()) : json();
    const json n       = partial.is_object() ? partial.value("rejectedLogRecords", json()) : json();
    return n.is_number_integer() ? n.get<uint64_t>() :
           n.is_string()         ? std::strtoull(n.get<std::string>().c_str(), nullptr, 10) :
                                   0;
}

static so8t_outbox::params so8t_otlp_params(const std::string & endpoint) {
    if (string_ends_with(endpoint, "://")) {
        throw std::invalid_argument("so8t: OpenTelemetry: '" + endpoint + "' is a URL without a host");
    }
    so8t_outbox::params params;
    params.name      = "OpenTelemetry";
    params.url       = endpoint + (string_ends_with(endpoint, "/") ? "" : "/") + "v1/logs";
    params.all       = so8t_pairs("OTEL_EXPORTER_OTLP_HEADERS");
    params.max_batch = 512;
    params.delay     = std::chrono::milliseconds(1000);
    params.timeout   = so8t_timeout();
    return params;
}

so8t_otlp::so8t_otlp(const std::string & endpoint) :
    outbox(
        so8t_otlp_params(endpoint),
        [resource = so8t_resource()](const std::vector<std::string> & records) {
            return so8t_outbox::message{resource + string_join(records, ",") + "]}]}]}", {}};
        },
        so8t_rejected) {}

//
// events
//

// what was done, in the words of the conventions; they have none for an answer that waits for a person
static const char * so8t_action_type(so8t_enforced enforced) {
    switch (enforced) {
        case SO8T_ENFORCED_NONE:
        case SO8T_ENFORCED_RELEASED:
        case SO8T_ENFORCED_EDITED:   return "allow";
        case SO8T_ENFORCED_HELD:     return "hold";
        default:                     return "block";
    }
}

static const char * so8t_verdict_type(llama_so8t_action action) {
    return action == LLAMA_SO8T_ACTION_ALLOW ? "allow" : action == LLAMA_SO8T_ACTION_REFUSE ? "deny" : "escalate";
}

static void so8t_add_source(so8t_attributes & attributes, const so8t_otlp::source & source) {
    attributes.text("gen_ai.operation.name", "run_guardrail");
    attributes.text("gen_ai.security.guardrail.name", "so8t");
    attributes.text("gen_ai.response.model", source.model);
    if (!source.request.empty()) {
        attributes.text("gen_ai.response.id", source.request);
    }
}

static void so8t_add_part(so8t_attributes & attributes, const so8t_verdict & verdict, so8t_part part) {
    const auto & heads = verdict.parts[part].heads;
    for (size_t i = 0; i < heads.size(); ++i) {
        if (heads[i].probs.empty()) {
            continue;
        }
        const std::string head = std::string("so8t.") + so8t_part_name(part) + "." + verdict.head_name(i);
        attributes.text(head + ".label", verdict.label_name(i, heads[i].label));
        for (size_t j = 0; j < heads[i].probs.size(); ++j) {
            attributes.probability(head + ".probability." + verdict.label_name(i, j), heads[i].probs[j]);
            if (part != SO8T_PART_PROMPT && j < heads[i].peak.size()) {
                attributes.probability(head + ".peak." + verdict.label_name(i, j), heads[i].peak[j]);
            }
        }
    }
}

static void so8t_add_finding(so8t_attributes & attributes, const so8t_verdict & verdict) {
    const so8t_trigger & triggered = verdict.triggered;
    const bool is_triggered        = triggered.action != LLAMA_SO8T_ACTION_ALLOW;
    const bool is_answer           = is_triggered ? triggered.part != SO8T_PART_PROMPT : verdict.n_judged() > 0;
    attributes.text("gen_ai.security.target.type", is_answer ? "llm_output" : "llm_input");
    attributes.text("gen_ai.security.verdict.type", so8t_verdict_type(triggered.action));
    attributes.text("gen_ai.security.action.type", so8t_action_type(verdict.enforced));
    attributes.text("gen_ai.security.policy.id", verdict.policy->sha256);
    if (is_triggered) {
        attributes.text("gen_ai.security.risk.finding",
            verdict.head_name(triggered.head) + "/" + verdict.label_name(triggered.head, triggered.label));
        attributes.probability("gen_ai.security.risk.score", triggered.probability);
    }
}

void so8t_otlp::add(const so8t_verdict & verdict, const source & source) {
    so8t_attributes attributes;
    so8t_add_source(attributes, source);
    so8t_add_finding(attributes, verdict);
    attributes.text("so8t.decision", llama_so8t_action_name(verdict.decision()));
    attributes.text("so8t.enforced", so8t_enforced_name(verdict.enforced));
    attributes.text("so8t.policy.mode", so8t_mode_name(verdict.policy->mode));
    attributes.flag("so8t.judged", source.judged);
    attributes.flag("so8t.cancelled", source.cancelled);
    attributes.integer("so8t.turns", verdict.turns.size());
    for (int part = 0; part < SO8T_N_PARTS; ++part) {
        so8t_add_part(attributes, verdict, (so8t_part) part);
    }
    if (verdict.escalation) {
        attributes.text("so8t.escalation.id", verdict.escalation->id);
    }
    if (verdict.audit) {
        attributes.integer("so8t.audit.seq", verdict.audit->seq);
        attributes.text("so8t.audit.hash", verdict.audit->hash);
    }
    const bool is_allowed = verdict.decision() == LLAMA_SO8T_ACTION_ALLOW;
    outbox.add(so8t_log_record(SO8T_EVENT_NAME, is_allowed ? SO8T_SEVERITY_INFO : SO8T_SEVERITY_WARN, attributes));
}

void so8t_otlp::add(const std::string & escalation, so8t_escalation_status status, const source & source) {
    so8t_attributes attributes;
    so8t_add_source(attributes, source);
    attributes.text("so8t.escalation.id", escalation);
    attributes.text("so8t.escalation.status", so8t_escalation_status_name(status));
    outbox.add(so8t_log_record(SO8T_EVENT_NAME_ESCALATION, SO8T_SEVERITY_INFO, attributes));
}
