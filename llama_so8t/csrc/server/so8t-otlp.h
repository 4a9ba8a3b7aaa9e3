#pragma once

#include "so8t-outbox.h"
#include "so8t-verdict.h"

#include <string>

// An OpenTelemetry event for each verdict: a log record, sent by OTLP over HTTP in JSON to a collector. It has labels,
// probabilities and decisions, and no text, no token and no name of a person.
//
// The names gen_ai.security.* are those of the proposed conventions for guardrails (open-telemetry/
// semantic-conventions-genai, pull request 427, November 2026); what these do not know is so8t.*.
class so8t_otlp {
  public:
    // what is known of a verdict besides itself
    struct source {
        std::string model;      // as clients name it
        std::string request;    // id of the answer, empty: it has none
        bool judged    = false; // a text that was not answered here
        bool cancelled = false;
    };

    // endpoint: of the collector, without /v1/logs. Headers, the timeout, and what is said of this service are taken from
    // OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TIMEOUT, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    // throws std::invalid_argument: the endpoint is no URL, or a variable is not what it should be
    explicit so8t_otlp(const std::string & endpoint);

    // neither waits nor throws
    void add(const so8t_verdict & verdict, const source & source);

    // a held answer was decided
    void add(const std::string & escalation, so8t_escalation_status status, const source & source);

    so8t_outbox::counts count() const { return outbox.count(); }

  private:
    so8t_outbox outbox;
};
