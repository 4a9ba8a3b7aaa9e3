#include "so8t-counters.h"

#include "common.h"

void so8t_counters::add(const so8t_verdict & verdict) {
    std::lock_guard<std::mutex> lock(mutex);
    n_decisions[llama_so8t_action_name(verdict.decision())]++;
    n_enforced[so8t_enforced_name(verdict.enforced)]++;
    n_read += verdict.n_read;
    t_us   += verdict.t_us;
    for (int part = 0; part < SO8T_N_PARTS; ++part) {
        const auto & heads = verdict.parts[part].heads;
        for (size_t i = 0; i < heads.size(); ++i) {
            if (!heads[i].probs.empty()) {
                const std::string label = verdict.label_name(i, heads[i].label);
                n_labels[{so8t_part_name((so8t_part) part), verdict.head_name(i), label}]++;
            }
        }
    }
}

void so8t_counters::add(so8t_escalation_status status) {
    std::lock_guard<std::mutex> lock(mutex);
    n_escalations[so8t_escalation_status_name(status)]++;
}

static json so8t_counts(const std::map<std::string, uint64_t> & counts) {
    json result = json::object();
    for (const auto & [name, n] : counts) {
        result[name] = n;
    }
    return result;
}

json so8t_counters::to_json(const so8t_readings::counts & texts) const {
    std::lock_guard<std::mutex> lock(mutex);
    json labels = json::object();
    for (const auto & [key, n] : n_labels) {
        const auto & [part, head, label]        = key;
        labels[part + "/" + head + "/" + label] = n;
    }
    return {
        {"decisions", so8t_counts(n_decisions)},
        {"enforced", so8t_counts(n_enforced)},
        {"escalations", so8t_counts(n_escalations)},
        {"labels", labels},
        {"texts", {{"read", texts.n_read}, {"remembered", texts.n_remembered}, {"tokens", texts.n_tokens}}},
        {"positions", n_read},
        {"guard_ms", t_us * 1e-3},
    };
}

static std::string so8t_quoted(const std::string & value) {
    std::string result;
    for (const char c : value) {
        result += c == '\n' ? "\\n" : c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    }
    return "\"" + result + "\"";
}

// with a 0 for each name that did not occur: Prometheus sees no increase in a series that begins with a 1
static std::map<std::string, uint64_t> so8t_with_zeros(
    const std::map<std::string, uint64_t> & counts, const std::vector<const char *> & names) {
    std::map<std::string, uint64_t> result = counts;
    for (const char * name : names) {
        result.emplace(name, 0);
    }
    return result;
}

static std::vector<const char *> so8t_enforced_names() {
    std::vector<const char *> names;
    for (int i = SO8T_ENFORCED_NONE; i <= SO8T_ENFORCED_UNAVAILABLE; ++i) {
        names.push_back(so8t_enforced_name((so8t_enforced) i));
    }
    return names;
}

std::string so8t_counters::prometheus(const others & others) const {
    std::string text;
    const auto metric = [&](const char * name, const char * type, const char * help) {
        text += string_format("# HELP llamacpp:so8t_%s %s\n# TYPE llamacpp:so8t_%s %s\n", name, help, name, type);
    };
    const auto by = [&](const char * name, const char * key, const std::map<std::string, uint64_t> & values) {
        for (const auto & [value, n] : values) {
            text += string_format(
                "llamacpp:so8t_%s{%s=%s} %llu\n", name, key, so8t_quoted(value).c_str(), (unsigned long long) n);
        }
    };
    const auto sent = [&](const char * name, const char * help, const std::optional<so8t_outbox::counts> & n) {
        if (n) {
            metric(name, "counter", help);
            by(name, "outcome", {{"sent", n->sent}, {"dropped", n->dropped}});
        }
    };
    const auto & texts = others.texts;

    std::lock_guard<std::mutex> lock(mutex);
    metric("decisions_total", "counter", "Answers by the action the heads asked for.");
    by("decisions_total", "action", so8t_with_zeros(n_decisions, {"allow", "escalate", "refuse"}));
    metric("enforced_total", "counter", "Answers by what was enforced.");
    by("enforced_total", "outcome", so8t_with_zeros(n_enforced, so8t_enforced_names()));
    metric("escalations_total", "counter", "Held answers by how they were decided.");
    by("escalations_total", "status",
        so8t_with_zeros(n_escalations, {"allowed", "edited", "denied", "timeout", "shutdown", "cancelled"}));
    metric("escalations_pending", "gauge", "Held answers that wait for a reviewer.");
    text += string_format("llamacpp:so8t_escalations_pending %zu\n", others.n_pending);
    sent("webhook_events_total", "Events of held answers by whether the webhook has taken them.", others.webhook);
    metric("labels_total", "counter", "Parts of answers by their last label.");
    for (const auto & [key, n] : n_labels) {
        const auto & [part, head, label] = key;
        text += string_format("llamacpp:so8t_labels_total{part=%s,head=%s,label=%s} %llu\n", so8t_quoted(part).c_str(),
            so8t_quoted(head).c_str(), so8t_quoted(label).c_str(), (unsigned long long) n);
    }
    metric("texts_total", "counter", "Texts of prompts that were judged besides the last token of the prompt.");
    by("texts_total", "source", {{"read", texts.n_read}, {"remembered", texts.n_remembered}});
    metric("text_tokens_total", "counter", "Tokens evaluated to judge them.");
    text += string_format("llamacpp:so8t_text_tokens_total %llu\n", (unsigned long long) texts.n_tokens);
    metric("positions_total", "counter", "Positions at which heads were read.");
    text += string_format("llamacpp:so8t_positions_total %llu\n", (unsigned long long) n_read);
    metric("guard_seconds_total", "counter", "Time spent on reading and judging, outside the graph.");
    text += string_format("llamacpp:so8t_guard_seconds_total %.6f\n", t_us * 1e-6);
    sent("otlp_events_total", "OpenTelemetry events by whether the collector has taken them.", others.otlp);
    metric("audit_failed", "gauge", "1 while audit lines cannot be written.");
    text += string_format("llamacpp:so8t_audit_failed %d\n", others.audit_failed ? 1 : 0);
    return text;
}
