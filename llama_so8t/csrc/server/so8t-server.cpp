#include "so8t-server.h"

#include "so8t-audit-pattern.h"
#include "so8t-model-info.h"
#include "so8t-tensor-hash.h"

#include "common.h"
#include "log.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <stdexcept>
#include <thread>

static const size_t SO8T_MAX_LOST = 1000; // audit lines kept in memory while the log cannot be written
static const size_t SO8T_MAX_ROLE = 64;   // bytes of a role in a line

//
// what is known after loading
//

static std::string so8t_meta(const llama_model * model, const char * key) {
    std::string value(256, '\0');
    const int32_t n = llama_model_meta_val_str(model, key, value.data(), value.size());
    return n < 0 ? "" : value.substr(0, n);
}

json so8t_server::model_info::to_json(bool with_path) const {
    json result = {{"architecture", architecture}, {"name", name}};
    if (with_path) {
        result["path"] = path;
    }
    result["sha256"] = nullptr;
    if (!sha256.empty()) {
        result["sha256"] = sha256;
    }
    result["heads_files"] = json::array();
    for (const auto & file : heads_files) {
        result["heads_files"].push_back(json::object({{"path", file.path}, {"sha256", file.sha256}}));
    }
    return result;
}

// as clients name it; if nobody has named it, the name of its file
static std::string so8t_served_name(const common_params & params) {
    const std::string name = params.model_alias.empty() ? params.model.get_name() : *params.model_alias.begin();
    if (name != params.model.path) {
        return name;
    }
    const std::filesystem::path file(name);
    return (file.extension() == ".gguf" ? file.stem() : file.filename()).string();
}

bool so8t_server::load(const llama_model * m, const common_params & params) try {
    if (policy) {
        return true;
    }
    policy = params.sampling.so8t.policy;
    if (!policy) {
        if (!params.so8t.audit.file.empty()) {
            LOG_WRN("so8t: the model has no heads, so nothing is judged and '%s' is not written\n",
                params.so8t.audit.file.c_str());
        }
        return true;
    }
    if (params.n_cache_reuse > 0 && policy->mode != SO8T_MODE_OFF) {
        LOG_WRN("so8t: --cache-reuse has no effect: the guard reads a prompt behind what it says, and no other\n");
    }
    model = {so8t_meta(m, "general.architecture"), so8t_meta(m, "general.name"), params.model.path,
        so8t_served_name(params), "", params.so8t.heads};
    for (const auto & adapter : params.lora_adapters) {
        adapters.push_back({adapter.path, so8t_file_hash(adapter.path), adapter.scale});
    }
    heads                 = so8t_heads_json(m, *policy);
    rotations             = so8t_rotations_json(m);
    policy_json           = so8t_policy_json(m, *policy);
    policy_json["sha256"] = policy->sha256;
    if (params.so8t.policy.has_reviewers) {
        begin_waiting(params);
    }
    if (!params.so8t.audit.file.empty()) {
        open_log(params);
    }
    if (!params.so8t.otlp.empty()) {
        events = std::make_unique<so8t_otlp>(params.so8t.otlp);
    }
    return true;
} catch (const std::exception & e) {
    LOG_ERR("error: %s\n", e.what());
    return false;
}

void so8t_server::begin_waiting(const common_params & params) {
    const auto seconds = [](double s) {
        return std::chrono::duration_cast<so8t_escalations::clock::duration>(std::chrono::duration<double>(s));
    };
    const auto & given = params.so8t.escalation; // checked also where no answer is held
    if (!given.reviewers_file.empty()) {
        known_reviewers = std::make_unique<so8t_reviewers>(given.reviewers_file);
    }
    if (!given.webhook_url.empty() || !given.webhook_key_file.empty()) {
        webhook = std::make_unique<so8t_webhook>(given.webhook_url, given.webhook_key_file);
    }
    if (policy->escalation_wait == 0 || policy->mode != SO8T_MODE_ENFORCE) {
        if (known_reviewers || webhook) {
            LOG_WRN("so8t: no answer is held (--so8t-policy enforce, --so8t-escalation-wait), so reviewers and webhook "
                    "have nothing to do\n");
        }
        return;
    }
    waiting = std::make_unique<so8t_escalations>(so8t_escalations::params{
        so8t_server_id(given.server_id, params.port),
        seconds(given.grace),
        seconds(given.ping),
        [this](const so8t_escalation & held) { tell("escalation.held", held); },
        [this](const so8t_escalation & decided) { return record_decision(decided); },
    });
}

void so8t_server::open_log(const common_params & params) {
    const so8t_audit_params settings = so8t_audit_of_model(params.so8t.audit, model.served);
    model.sha256                     = params.so8t.model_sha256;
    if (model.sha256.empty()) {
        LOG_INF("so8t: hashing the tensors of the model for the audit log\n");
        model.sha256 = so8t_tensor_hash(params.model.path);
    }
    audit_required = params.so8t.audit_required && policy->mode == SO8T_MODE_ENFORCE;
    json identity  = model.to_json(false);

    identity["heads"]    = heads;
    identity["adapters"] = adapters_json();
    log                  = std::make_unique<so8t_audit>(settings, identity, policy_json);
}

json so8t_server::adapters_json() const {
    std::lock_guard<std::mutex> lock(adapters_mutex);
    json result = json::array();
    for (const auto & adapter : adapters) {
        result.push_back(
            json::object({{"path", adapter.path}, {"sha256", adapter.sha256}, {"scale", so8t_short(adapter.scale)}}));
    }
    return result;
}

void so8t_server::stop() {
    waiting.reset();
    webhook.reset();
    if (log && !write_lost()) {
        LOG_ERR("error: so8t: %zu lines of the audit log could not be written and are lost\n",
            lost.size() + (size_t) n_dropped);
    }
    log.reset();
    events.reset();
}

void so8t_server::end_waiting() {
    if (waiting && waiting->n_pending() > 0) {
        waiting->end();
        std::this_thread::sleep_for(std::chrono::milliseconds(500)); // the threads of the clients write the answers
    }
}

//
// audit
//

// in their order, and before any other line
bool so8t_server::write_lost() {
    for (; !lost.empty(); lost.pop_front()) {
        if (!log->append(lost.front().first, lost.front().second, true)) {
            return false;
        }
    }
    if (n_dropped > 0) {
        if (!log->append(SO8T_AUDIT_LOST, json::object({{"lines", n_dropped}}), true)) {
            return false;
        }
        n_dropped = 0;
    }
    return true;
}

std::optional<so8t_audit::entry> so8t_server::write(const char * event, const json & fields, bool durable) {
    return write_lost() ? log->append(event, fields, durable) : std::nullopt;
}

void so8t_server::keep(const char * event, const json & fields) {
    if (lost.size() < SO8T_MAX_LOST) {
        lost.emplace_back(event, fields);
    } else {
        n_dropped++;
    }
}

std::shared_ptr<const std::vector<so8t_text_digest>> so8t_server::digests(
    const std::vector<so8t_client_text> & texts) const {
    if (!log) {
        return nullptr;
    }
    auto digests = std::make_shared<std::vector<so8t_text_digest>>();
    for (const auto & [role, text] : texts) {
        digests->push_back({role.substr(0, SO8T_MAX_ROLE), text.size(), log->digest(text)});
    }
    return digests;
}

static json so8t_digests_json(const std::vector<so8t_text_digest> & digests) {
    json result = json::array();
    for (const auto & digest : digests) {
        json entry = json::object();
        if (!digest.role.empty()) {
            entry["role"] = digest.role;
        }
        entry["n_bytes"] = digest.n_bytes;
        entry["hmac"]    = digest.hmac;
        result.push_back(entry);
    }
    return result;
}

json so8t_server::request_json(const so8t_request_record & request, const so8t_verdict & verdict) const {
    json result = {
        {"request", request.id},
        {"task", request.id_task},
        {"slot", request.id_slot},
        {"model", model.sha256},
        {"policy", verdict.policy->sha256},
        {"mode", request.judge ? "judge" : so8t_mode_name(verdict.policy->mode)},
        {"prompt", log->text_record(request.prompt, request.n_prompt)},
        {"answer", log->text_record(request.answer, request.n_answer)},
        {"verdicts", verdict.changes_json()},
        {"decision", llama_so8t_action_name(verdict.decision())},
        {"enforced", so8t_enforced_name(verdict.enforced)},
        {"triggered", verdict.triggered_json()},
    };
    if (request.messages) {
        result["messages"] = so8t_digests_json(*request.messages);
    }
    if (verdict.escalation) {
        result["escalation"] = verdict.escalation->id;
    }
    if (request.cancelled) {
        result["cancelled"] = true;
    }
    for (const auto & [index, scale] : request.lora) {
        result["lora"].push_back(json::object({{"id", index}, {"scale", so8t_short(scale)}}));
    }
    return result;
}

bool so8t_server::record(const so8t_request_record & request, const so8t_verdict & verdict, bool durable,
    std::optional<so8t_verdict::audit_entry> & entry) {
    if (!log) {
        return true;
    }
    json fields = request_json(request, verdict);

    std::lock_guard<std::mutex> lock(write_mutex);
    if (const auto written = write(SO8T_AUDIT_REQUEST, fields, durable)) {
        entry = {written->seq, written->hash};
        return true;
    }
    if (audit_required) {
        fields["enforced"] = so8t_enforced_name(SO8T_ENFORCED_UNAVAILABLE);
    }
    keep(SO8T_AUDIT_REQUEST, fields);
    return !audit_required;
}

bool so8t_server::may_serve() {
    if (!log) {
        return true;
    }
    std::lock_guard<std::mutex> lock(write_mutex);
    return write_lost() || !audit_required;
}

bool so8t_server::record_decision(const so8t_escalation & decided) {
    json fields = {
        {"escalation", decided.id},
        {"status", so8t_escalation_status_name(decided.status)},
        {"reviewer", nullptr},
        {"comment", nullptr},
    };
    if (!decided.reviewer.empty()) {
        fields["reviewer"] = decided.reviewer;
    }
    if (!decided.comment.empty()) {
        fields["comment"] = decided.comment;
    }
    if (log && decided.status == SO8T_ESCALATION_EDITED) {
        fields["text"] = log->text_record(decided.text);
    }
    if (log) {
        std::lock_guard<std::mutex> lock(write_mutex);
        if (!write(SO8T_AUDIT_ESCALATION, fields, true)) {
            const bool released = decided.status == SO8T_ESCALATION_ALLOWED || decided.status == SO8T_ESCALATION_EDITED;
            if (audit_required && released) {
                return false; // the answer stays pending
            }
            keep(SO8T_AUDIT_ESCALATION, fields);
        }
    }
    if (events) {
        events->add(decided.id, decided.status, {model.served, "", false, false});
    }
    tell("escalation.decided", decided);
    counters.add(decided.status);
    return true;
}

void so8t_server::tell(const char * type, const so8t_escalation & escalation) {
    if (webhook) {
        json data     = escalation.to_json(false);
        data["model"] = model.name;
        webhook->send(type, data);
    }
}

//
// what is told
//

void so8t_server::count(const so8t_verdict & verdict, const so8t_request_record & record) {
    if (events) {
        events->add(verdict, {model.served, record.id, record.judge, record.cancelled});
    }
    counters.add(verdict);
}

json so8t_server::info() const {
    if (!policy) {
        return {{"heads", json::object()}};
    }
    json audit = nullptr;
    if (log) {
        const auto last = log->last();
        audit           = {{"path", log->path()}, {"seq", last.seq}, {"hash", last.hash}, {"failed", log->failed()}};
    }
    json identity        = model.to_json(true);
    identity["adapters"] = adapters_json();
    return {
        {"model", identity},
        {"heads", heads},
        {"policy", policy_json},
        {"rotations", rotations},
        {"audit", audit},
        {"counters", counters.to_json(readings.count())},
    };
}

json so8t_server::add_props(json props) const {
    if (policy) {
        props["so8t"] = json::object({{"heads", heads}, {"policy", policy_json}, {"rotations", rotations}});
    }
    return props;
}

std::string so8t_server::prometheus() const {
    if (!policy) {
        return "";
    }
    so8t_counters::others others;
    others.texts        = readings.count();
    others.n_pending    = waiting ? waiting->n_pending() : 0;
    others.audit_failed = log && log->failed();
    if (webhook) {
        others.webhook = webhook->count();
    }
    if (events) {
        others.otlp = events->count();
    }
    return counters.prometheus(others);
}

//
// requests
//

static void so8t_read_options(const json & body, so8t_sampling_params & params) {
    if (!body.contains("so8t")) {
        return;
    }
    const json & given = body.at("so8t");
    if (!given.is_object()) {
        throw std::invalid_argument("so8t: expected an object with \"trace\" or \"annotations\", true or false");
    }
    for (const auto & [key, value] : given.items()) {
        if ((key != "trace" && key != "annotations") || !value.is_boolean()) {
            throw std::invalid_argument(
                "so8t: found the key '" + key + "', expected \"trace\" or \"annotations\", true or false");
        }
        (key == "trace" ? params.trace : params.annotations) = value.get<bool>();
    }
}

void so8t_server::read_request(task_params & params, const json & body, const server_tokens & prompt,
    task_response_type type, const so8t_should_stop & should_stop) {
    if (!has_heads()) {
        return;
    }
    so8t_sampling_params & request = params.sampling.so8t;
    const bool is_chat             = type != TASK_RESPONSE_TYPE_NONE && type != TASK_RESPONSE_TYPE_OAI_CMPL;
    so8t_read_options(body, request);

    if (!takes_adapters() && !json_value(body, "lora", json::array()).empty()) {
        throw std::invalid_argument(
            "so8t: a request cannot choose adapters here, by which it would be judged as well (request_lora)");
    }
    if (policy->mode != SO8T_MODE_OFF && policy->reads_texts() && prompt.size() != prompt.get_text_tokens().size()) {
        throw std::invalid_argument(
            "so8t: a head of this model reads the text of a turn (prompt_aggregation), which is "
            "not supported with images or sound in the prompt");
    }
    const bool is_read = policy->mode != SO8T_MODE_OFF && (is_chat || policy->raw_prompts != SO8T_RAW_PROMPTS_LAST);
    if (log) {
        auto texts = is_chat ? so8t_client_texts(common_chat_msgs_parse_oaicompat(body.at("messages"))) :
                               so8t_client_texts(body);
        if (is_read && !is_chat) { // somebody typed a turn that a program has put into a template
            const auto turns = readings.turn_texts(prompt);
            texts.insert(texts.end(), turns.begin(), turns.end());
        }
        request.messages = digests(texts);
    }
    if (policy->mode != SO8T_MODE_OFF) {
        params.n_cache_reuse =
            0; // a chunk of another prompt was evaluated behind other texts, and says what they made of it
    }
    if (is_read && !is_chat && policy->raw_prompts == SO8T_RAW_PROMPTS_REFUSE) {
        throw std::invalid_argument("so8t: prompts that are not made by the chat template are not served here "
                                    "(raw_prompts); use /v1/chat/completions");
    }
    if (is_read) {
        readings.read(request, body, prompt, is_chat, should_stop);
    }
}

void so8t_server::prepare(llama_model * m, const common_params & params, const server_chat_params & chat,
    uint32_t n_ctx, server_queue & queue) {
    if (policy) {
        readings.prepare(m, params, policy, chat, n_ctx, queue);
    }
}

bool so8t_server::takes_adapters() const {
    return !policy || policy->mode != SO8T_MODE_ENFORCE || policy->request_lora == SO8T_REQUEST_LORA_ALLOW;
}

void so8t_server::set_adapters(const std::vector<common_adapter_lora_info> & set) {
    readings.set_adapters(set);
    bool is_change = false;
    {
        std::lock_guard<std::mutex> lock(adapters_mutex);
        for (size_t i = 0; i < std::min(set.size(), adapters.size()); ++i) {
            is_change         |= adapters[i].scale != set[i].scale;
            adapters[i].scale  = set[i].scale;
        }
    }
    if (is_change && log) {
        const json fields = {{"adapters", adapters_json()}};

        std::lock_guard<std::mutex> lock(write_mutex);
        if (!write(SO8T_AUDIT_ADAPTERS, fields, true)) {
            keep(SO8T_AUDIT_ADAPTERS, fields); // before the next answer, if none may be given without a line
        }
    }
}

// a text that was judged, and not answered here
so8t_verdict so8t_server::record_judged(
    so8t_readings::judged_text && judged, const std::vector<common_chat_msg> & messages, const std::string & answer) {
    so8t_verdict & verdict = judged.verdict;

    so8t_request_record record;
    record.prompt       = judged.prompt;
    record.n_prompt     = judged.n_prompt;
    record.answer       = answer;
    record.n_answer     = verdict.n_judged();
    record.messages     = digests(so8t_client_texts(messages));
    record.judge        = true;
    const bool recorded = this->record(record, verdict, verdict.decision() != LLAMA_SO8T_ACTION_ALLOW, verdict.audit);
    verdict.enforced    = recorded ? verdict.enforced : SO8T_ENFORCED_UNAVAILABLE;
    count(verdict, record);
    return verdict;
}

so8t_verdict so8t_server::judge(const std::vector<common_chat_msg> & messages, const std::string * answer,
    bool only_answer, const so8t_should_stop & should_stop) {
    return record_judged(readings.judge(messages, answer, only_answer, should_stop), messages, answer ? *answer : "");
}

so8t_verdict so8t_server::judge_chat(
    const std::vector<common_chat_msg> & messages, const so8t_should_stop & should_stop) {
    return record_judged(readings.judge_chat(messages, should_stop), messages, "");
}
