#include "so8t-verdict.h"

#include "json.h"

#include <algorithm>
#include <stdexcept>

static const char * const SO8T_NOT_FINITE = "not finite"; // as a label

const char * so8t_part_name(so8t_part part) {
    switch (part) {
        case SO8T_PART_PROMPT: return "prompt";
        case SO8T_PART_THINK:  return "think";
        case SO8T_PART_ANSWER: return "answer";
        case SO8T_N_PARTS:     break;
    }
    return "?";
}

const char * so8t_reading_kind_name(so8t_reading_kind kind) {
    switch (kind) {
        case SO8T_READING_CONTEXT: return "context";
        case SO8T_READING_ALONE:   return "alone";
        case SO8T_READING_GIVEN:   return "given";
        case SO8T_READING_TEXT:    return "text";
    }
    return "?";
}

const char * so8t_enforced_name(so8t_enforced enforced) {
    switch (enforced) {
        case SO8T_ENFORCED_NONE:        return "none";
        case SO8T_ENFORCED_STOP:        return "stop";
        case SO8T_ENFORCED_MESSAGE:     return "message";
        case SO8T_ENFORCED_ESCALATION:  return "escalation";
        case SO8T_ENFORCED_HELD:        return "held";
        case SO8T_ENFORCED_RELEASED:    return "released";
        case SO8T_ENFORCED_EDITED:      return "edited";
        case SO8T_ENFORCED_DENIED:      return "denied";
        case SO8T_ENFORCED_TIMEOUT:     return "timeout";
        case SO8T_ENFORCED_SHUTDOWN:    return "shutdown";
        case SO8T_ENFORCED_UNAVAILABLE: return "unavailable";
    }
    return "?";
}

const char * so8t_escalation_status_name(so8t_escalation_status status) {
    switch (status) {
        case SO8T_ESCALATION_PENDING:   return "pending";
        case SO8T_ESCALATION_GONE:      return "gone";
        case SO8T_ESCALATION_ALLOWED:   return "allowed";
        case SO8T_ESCALATION_EDITED:    return "edited";
        case SO8T_ESCALATION_DENIED:    return "denied";
        case SO8T_ESCALATION_TIMEOUT:   return "timeout";
        case SO8T_ESCALATION_SHUTDOWN:  return "shutdown";
        case SO8T_ESCALATION_CANCELLED: return "cancelled";
    }
    return "?";
}

void so8t_verdict::hide_text(int32_t n) {
    if (!trace) {
        return;
    }
    for (auto & token : *trace) {
        if (token.part != SO8T_PART_PROMPT && n-- <= 0) {
            token.delivered = false;
        }
    }
}

std::string so8t_verdict::label_name(int32_t head, int32_t label) const {
    return label < 0 ? SO8T_NOT_FINITE : policy->heads[head].labels[label];
}

//
// to JSON
//

common_json so8t_probability_json(float probability) {
    return std::isfinite(probability) ? common_json(so8t_short(probability)) : common_json(nullptr);
}

common_json so8t_verdict::probabilities_json(int32_t head, const std::vector<float> & values) const {
    common_json json = common_json::object();
    for (size_t i = 0; i < values.size(); ++i) {
        json[policy->heads[head].labels[i]] = so8t_probability_json(values[i]);
    }
    return json;
}

common_json so8t_verdict::part_json(const so8t_part_verdict & part, bool is_prompt) const {
    common_json json = common_json::object();
    json["action"]   = llama_so8t_action_name(part.action);
    if (!is_prompt) {
        json["n_positions"] = part.n_positions;
    }
    common_json heads = common_json::object();
    for (size_t i = 0; i < part.heads.size(); ++i) {
        const auto & head = part.heads[i];
        if (head.probs.empty()) {
            continue;
        }
        common_json entry      = common_json::object();
        entry["label"]         = label_name(i, head.label);
        entry["probabilities"] = probabilities_json(i, head.probs);
        if (is_prompt && head.aggregation >= 0) {
            entry["aggregation"] = llama_so8t_prompt_aggregation_name(
                policy->heads[i].prompt_aggregations[head.aggregation]);
        }
        if (!is_prompt) {
            entry["peak"]      = probabilities_json(i, head.peak);
            entry["triggered"] = nullptr;
            if (head.triggered_label >= 0) {
                entry["triggered"] = common_json::object({
                    {"position", head.triggered_position},
                    {"label", label_name(i, head.triggered_label)},
                });
            }
        }
        heads[head_name(i)] = entry;
    }
    json["heads"] = heads;
    return json;
}

common_json so8t_verdict::trace_json() const {
    common_json json = common_json::array();
    for (const auto & token : *trace) {
        common_json entry = common_json::object({
            {"part", so8t_part_name(token.part)},
            {"position", token.position},
            {"id", nullptr},
            {"text", token.delivered ? token.text : ""},
        });
        if (token.delivered) {
            entry["id"] = token.id;
        }
        common_json heads = common_json::object();
        for (size_t i = 0; i < token.probs.size(); ++i) {
            if (!token.probs[i].empty()) {
                heads[head_name(i)] = probabilities_json(i, token.probs[i]);
            }
        }
        entry["heads"] = heads;
        json.push_back(entry);
    }
    return json;
}

common_json so8t_verdict::triggered_json() const {
    if (triggered.action == LLAMA_SO8T_ACTION_ALLOW) {
        return nullptr;
    }
    common_json json = common_json::object({
        {"part", so8t_part_name(triggered.part)},
        {"position", triggered.position},
        {"head", head_name(triggered.head)},
        {"label", label_name(triggered.head, triggered.label)},
        {"probability", so8t_probability_json(triggered.probability)},
    });
    if (triggered.reading >= 0) {
        json["turn"]    = turns[triggered.reading].turn;
        json["reading"] = so8t_reading_kind_name(turns[triggered.reading].kind);
    }
    return json;
}

common_json so8t_verdict::turns_json() const {
    common_json json = common_json::array();
    for (const auto & turn : turns) {
        common_json entry      = common_json::object({
            {"turn", turn.turn},
            {"reading", so8t_reading_kind_name(turn.kind)},
            {"noted", turn.noted},
        });
        const common_json part = part_json(turn.part, turn.kind != SO8T_READING_GIVEN);
        for (const auto & [key, value] : part.items()) {
            entry[key] = value;
        }
        json.push_back(entry);
    }
    return json;
}

common_json so8t_verdict::changes_json() const {
    common_json json = common_json::array();
    for (const auto & change : changes) {
        json.push_back({
            {"part", so8t_part_name(change.part)},
            {"position", change.position},
            {"head", head_name(change.head)},
            {"label", label_name(change.head, change.label)},
            {"probabilities", probabilities_json(change.head, change.probs)},
        });
    }
    return json;
}

common_json so8t_verdict::to_json() const {
    common_json json = common_json::object({
        {"decision", llama_so8t_action_name(decision())},
        {"enforced", so8t_enforced_name(enforced)},
        {"policy", {{"mode", so8t_mode_name(policy->mode)}, {"sha256", policy->sha256}}},
        {"prompt", part_json(parts[SO8T_PART_PROMPT], true)},
    });
    if (parts[SO8T_PART_THINK].n_positions > 0) {
        json["think"] = part_json(parts[SO8T_PART_THINK], false);
    }
    json["answer"] = part_json(parts[SO8T_PART_ANSWER], false);
    if (!turns.empty()) {
        json["turns"] = turns_json();
    }
    json["triggered"] = triggered_json();

    common_json thresholds  = common_json::object();
    common_json debounce    = common_json::object();
    common_json aggregation = common_json::object();
    common_json of_prompts  = common_json::object();
    for (size_t i = 0; i < policy->heads.size(); ++i) {
        thresholds[head_name(i)] = policy->heads[i].thresholds_json();
        debounce[head_name(i)]   = policy->heads[i].debounce;
        if (policy->heads[i].reads_texts()) {
            of_prompts[head_name(i)] = policy->heads[i].prompt_thresholds_json();
        }
        const common_json how = policy->heads[i].aggregation_json();
        if (!how.empty()) {
            aggregation[head_name(i)] = how;
        }
    }
    json["thresholds"] = thresholds;
    json["debounce"]   = debounce;
    if (!of_prompts.empty()) {
        json["prompt_thresholds"] = of_prompts;
    }
    if (!aggregation.empty()) {
        json["aggregation"] = aggregation;
    }

    if (escalation) {
        json["escalation"] = common_json::object({
            {"id", escalation->id},
            {"status", so8t_escalation_status_name(escalation->status)},
            {"reviewer", nullptr},
        });
        if (!escalation->reviewer.empty()) {
            json["escalation"]["reviewer"] = escalation->reviewer;
        }
    }
    if (audit) {
        json["audit"] = common_json::object({{"seq", audit->seq}, {"hash", audit->hash}});
    }
    if (trace) {
        json["trace"] = trace_json();
    }
    return json;
}

//
// from JSON
//

// the value whose name stands there
template <typename T>
static T so8t_named(const common_json & json, T last, const char * (*name)(T)) {
    const std::string wanted = json.get<std::string>();
    for (int i = 0; i <= (int) last; ++i) {
        if (wanted == name((T) i)) {
            return (T) i;
        }
    }
    throw std::invalid_argument("so8t: '" + wanted + "' is not known here: are server and client of one version?");
}

static int32_t so8t_label_index(const std::vector<std::string> & labels, const common_json & json) {
    const auto found = std::find(labels.begin(), labels.end(), json.get<std::string>());
    return found == labels.end() ? -1 : found - labels.begin();
}

static so8t_head_verdict so8t_head_from_json(const std::vector<std::string> & labels, const common_json & json) {
    so8t_head_verdict head;
    for (const auto & label : labels) {
        const common_json & p = json.at("probabilities").at(label);
        head.probs.push_back(p.is_null() ? NAN : p.get<float>());
    }
    head.label = so8t_label_index(labels, json.at("label"));
    if (json.contains("triggered") && !json.at("triggered").is_null()) {
        const common_json & triggered = json.at("triggered");
        head.triggered_position       = triggered.at("position").get<int32_t>();
        head.triggered_label          = so8t_label_index(labels, triggered.at("label"));
    }
    return head;
}

static so8t_part_verdict so8t_part_from_json(const so8t_policy & policy, const common_json & json) {
    so8t_part_verdict part;
    part.action      = so8t_named(json.at("action"), LLAMA_SO8T_ACTION_REFUSE, llama_so8t_action_name);
    part.n_positions = json.value("n_positions", 1); // a prompt has one
    for (const auto & head : policy.heads) {
        const bool asked = json.at("heads").contains(head.name);
        part.heads.push_back(
            asked ? so8t_head_from_json(head.labels, json.at("heads").at(head.name)) : so8t_head_verdict());
    }
    return part;
}

so8t_verdict so8t_verdict_from_json(const common_json & json) {
    auto policy = std::make_shared<so8t_policy>();
    for (const auto & [name, thresholds] : json.at("thresholds").items()) {
        policy->heads.emplace_back();
        policy->heads.back().name = name;
        for (const auto & [label, threshold] : thresholds.items()) {
            policy->heads.back().labels.push_back(label);
        }
    }
    so8t_verdict verdict;
    verdict.policy   = policy;
    verdict.enforced = so8t_named(json.at("enforced"), SO8T_ENFORCED_UNAVAILABLE, so8t_enforced_name);
    for (int i = 0; i < SO8T_N_PARTS; ++i) {
        const char * name = so8t_part_name((so8t_part) i);
        if (json.contains(name)) {
            verdict.parts[i] = so8t_part_from_json(*policy, json.at(name));
        }
    }
    if (json.contains("turns")) {
        for (const auto & turn : json.at("turns")) {
            verdict.turns.push_back({so8t_named(turn.at("reading"), SO8T_READING_TEXT, so8t_reading_kind_name),
                turn.at("turn").get<int32_t>(), turn.at("noted").get<bool>(), so8t_part_from_json(*policy, turn), {}});
        }
    }
    return verdict;
}
