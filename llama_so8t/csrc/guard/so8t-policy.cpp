#include "so8t-policy.h"

#include "so8t-json.h"

#include "common.h"
#include "json.h"

#include "hash/hash.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <stdexcept>

static const size_t SO8T_POLICY_MAX_BYTES = 1 << 20;
static const size_t SO8T_TEXT_MAX_BYTES   = 4096;
static const size_t SO8T_FOUND_MAX_BYTES  = 200; // of a wrong value in a message

[[noreturn]] static void so8t_policy_error(
    const std::string & where, const common_json & found, const std::string & expected) {
    std::string text = found.dump_safe();
    if (text.size() > SO8T_FOUND_MAX_BYTES) {
        text = text.substr(0, SO8T_FOUND_MAX_BYTES) + " ...";
    }
    throw std::invalid_argument("so8t policy: " + where + ": found " + text + ", expected " + expected);
}

//
// the keys and what they may be
//

static void so8t_check_choice(
    const std::string & where, const common_json & value, const std::vector<const char *> & choices) {
    std::string expected;
    for (const char * choice : choices) {
        if (value.is_string() && value.get<std::string>() == choice) {
            return;
        }
        expected += std::string(expected.empty() ? "" : ", ") + "\"" + choice + "\"";
    }
    so8t_policy_error(where, value, "one of " + expected);
}

static void so8t_check_count(const std::string & where, const common_json & value, int64_t min, int64_t max) {
    if (!value.is_number_integer() || value.get<int64_t>() < min || value.get<int64_t>() > max) {
        so8t_policy_error(
            where, value, string_format("a whole number from %lld to %lld", (long long) min, (long long) max));
    }
}

static void so8t_check_text(const std::string & where, const common_json & value) {
    if (!value.is_string() || value.get<std::string>().empty() ||
        value.get<std::string>().size() > SO8T_TEXT_MAX_BYTES) {
        so8t_policy_error(where, value, string_format("a text of at most %zu bytes", SO8T_TEXT_MAX_BYTES));
    }
    try {
        value.dump(); // strict, other than dump_safe()
    } catch (const std::exception &) {
        so8t_policy_error(where, value, "valid UTF-8");
    }
}

static void so8t_check_object(const std::string & where, const common_json & value, const char * of) {
    if (!value.is_object()) {
        so8t_policy_error(where, value, std::string("an object of ") + of);
    }
}

static void so8t_check_head(const std::string & where, const common_json & head) {
    so8t_check_object(where, head, "\"debounce\" and \"thresholds\"");
    for (const auto & [key, value] : head.items()) {
        const std::string at = where + "." + key;
        if (key == "debounce") {
            so8t_check_count(at, value, 1, 1000);
        } else if (key == "thresholds") {
            so8t_check_object(at, value, "label: threshold");
            for (const auto & [label, threshold] : value.items()) {
                if (!threshold.is_number() || !(threshold.get<double>() >= 0.0 && threshold.get<double>() <= 1.0)) {
                    so8t_policy_error(at + "." + label, threshold, "a number from 0 to 1");
                }
            }
        } else {
            so8t_policy_error(where, key, "\"debounce\" or \"thresholds\"");
        }
    }
}

using so8t_check = std::function<void(const std::string & where, const common_json & value)>;

static const std::map<std::string, so8t_check> & so8t_policy_keys() {
    static const std::map<std::string, so8t_check> keys = {
        {"mode", [](auto & where, auto & value) { so8t_check_choice(where, value, {"off", "monitor", "enforce"}); }},
        {"think", [](auto & where, auto & value) { so8t_check_choice(where, value, {"monitor", "enforce"}); }},
        {"on_refuse", [](auto & where, auto & value) { so8t_check_choice(where, value, {"stop", "message"}); }},
        {"refusal", so8t_check_text},
        {"escalation", so8t_check_text},
        {"debounce", [](auto & where, auto & value) { so8t_check_count(where, value, 1, 1000); }},
        {"holdback", [](auto & where, auto & value) { so8t_check_count(where, value, 0, 1000); }},
        {"escalation_wait", [](auto & where, auto & value) { so8t_check_count(where, value, 0, 86400); }},
        {"heads",
            [](auto & where, auto & value) {
                so8t_check_object(where, value, "heads");
                for (const auto & [name, head] : value.items()) {
                    so8t_check_head(where + "." + name, head);
                }
            }},
    };
    return keys;
}

static void so8t_policy_check(const std::string & where, const std::string & key, const common_json & value) {
    const auto & keys = so8t_policy_keys();

    const auto found = keys.find(key);
    if (found == keys.end()) {
        std::string expected;
        for (const auto & [name, check] : keys) {
            expected += (expected.empty() ? "" : ", ") + name;
        }
        so8t_policy_error(where, key, "one of the keys " + expected);
    }
    found->second(where + ": " + key, value);
}

static common_json so8t_policy_parse(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    std::string text(SO8T_POLICY_MAX_BYTES + 1, '\0');
    file.read(text.data(), text.size());
    if (!file.is_open() || file.bad()) {
        throw std::invalid_argument("so8t policy: cannot read '" + path + "': give a JSON file");
    }
    text.resize(file.gcount());
    if (text.size() > SO8T_POLICY_MAX_BYTES) {
        throw std::invalid_argument(
            "so8t policy: '" + path + "' is larger than 1 MiB, expected a JSON object of some lines");
    }
    if (so8t_json_too_deep(text)) {
        throw std::invalid_argument("so8t policy: '" + path + "' is no policy: nested too deep");
    }
    common_json policy;
    try {
        policy = common_json::parse(text);
    } catch (const std::exception & e) {
        throw std::invalid_argument("so8t policy: '" + path + "' is no JSON: " + e.what());
    }
    if (!policy.is_object()) {
        so8t_policy_error("'" + path + "'", policy, "an object");
    }
    for (const auto & [key, value] : policy.items()) {
        so8t_policy_check("'" + path + "'", key, value);
    }
    return policy;
}

std::shared_ptr<const common_json> so8t_policy_read(const std::string & path) {
    try {
        return std::make_shared<common_json>(so8t_policy_parse(path));
    } catch (const std::exception & e) {
        return std::make_shared<common_json>(std::string(e.what()));
    }
}

void so8t_policy_set(so8t_policy_params & params, const std::string & key, const common_json & value) {
    so8t_policy_check("flag", key, value);
    auto flags    = std::make_shared<common_json>(params.flags ? *params.flags : common_json::object());
    (*flags)[key] = value;
    params.flags  = flags;
}

void so8t_policy_set_thresholds(so8t_policy_params & params, const std::string & text) {
    common_json heads = params.flags ? params.flags->value("heads", common_json::object()) : common_json::object();
    for (const auto & item : string_split<std::string>(text, ',')) {
        const size_t slash  = item.find('/');
        const size_t equals = item.rfind('=');

        const char * number = equals == std::string::npos ? "" : item.c_str() + equals + 1;
        char * end          = nullptr;
        const double value  = std::strtod(number, &end);
        if (slash == std::string::npos || equals == std::string::npos || slash > equals || end == number ||
            *end != '\0') {
            so8t_policy_error("threshold", item, "HEAD/LABEL=VALUE, as in safety/unsafe=0.8");
        }
        heads[item.substr(0, slash)]["thresholds"][item.substr(slash + 1, equals - slash - 1)] = value;
    }
    so8t_policy_set(params, "heads", heads);
}

//
// the policy for a model
//

const char * so8t_mode_name(so8t_mode mode) {
    switch (mode) {
        case SO8T_MODE_OFF:     return "off";
        case SO8T_MODE_MONITOR: return "monitor";
        case SO8T_MODE_ENFORCE: return "enforce";
    }
    return "?";
}

static so8t_mode so8t_mode_from_name(const std::string & name) {
    return name == "off" ? SO8T_MODE_OFF : name == "monitor" ? SO8T_MODE_MONITOR : SO8T_MODE_ENFORCE;
}

bool so8t_policy::enforces(bool in_think) const {
    return mode == SO8T_MODE_ENFORCE && (!in_think || think == SO8T_MODE_ENFORCE);
}

double so8t_short(float value) {
    return std::strtod(string_format("%.7g", value).c_str(), nullptr);
}

static std::string so8t_names(int32_t n, const std::function<std::string(int32_t)> & name) {
    std::string result;
    for (int32_t i = 0; i < n; ++i) {
        result += (i == 0 ? "\"" : ", \"") + name(i) + "\"";
    }
    return result;
}

static int32_t so8t_find(int32_t n, const std::function<std::string(int32_t)> & name, const std::string & wanted,
    const std::string & where) {
    for (int32_t i = 0; i < n; ++i) {
        if (name(i) == wanted) {
            return i;
        }
    }
    so8t_policy_error(where, wanted, "one of those of the model: " + so8t_names(n, name));
}

static void so8t_policy_apply(so8t_policy & policy, const llama_model * model, const common_json & settings) {
    for (const auto & [key, value] : settings.items()) {
        if (key == "mode") {
            policy.mode = so8t_mode_from_name(value.get<std::string>());
        } else if (key == "think") {
            policy.think = so8t_mode_from_name(value.get<std::string>());
        } else if (key == "on_refuse") {
            policy.message = value.get<std::string>() == "message";
        } else if (key == "refusal") {
            policy.refusal = value.get<std::string>();
        } else if (key == "escalation") {
            policy.escalation = value.get<std::string>();
        } else if (key == "holdback") {
            policy.holdback = value.get<int32_t>();
        } else if (key == "escalation_wait") {
            policy.escalation_wait = value.get<int32_t>();
        } else if (key == "debounce") {
            for (auto & head : policy.heads) {
                head.debounce = value.get<int32_t>();
            }
        }
    }
    if (!settings.contains("heads")) {
        return;
    }
    const auto head_name = [&](int32_t i) { return std::string(llama_so8t_get_head(model, i).name); };
    for (const auto & [name, given] : settings.at("heads").items()) {
        const int32_t i_head = so8t_find(policy.heads.size(), head_name, name, "heads");

        auto & head   = policy.heads[i_head];
        head.debounce = given.value("debounce", head.debounce);

        const auto label_name = [&](int32_t i) { return std::string(llama_so8t_get_label(model, i_head, i).name); };
        const common_json thresholds = given.value("thresholds", common_json::object());
        for (const auto & [label, threshold] : thresholds.items()) {
            head.thresholds[so8t_find(head.thresholds.size(), label_name, label, "heads." + name + ".thresholds")] =
                threshold.get<float>();
        }
    }
}

std::shared_ptr<const so8t_policy> so8t_policy_init(const llama_model * model, const so8t_policy_params & params) {
    const int32_t n_heads = llama_so8t_n_heads(model);
    if (n_heads == 0) {
        return nullptr;
    }
    auto policy = std::make_shared<so8t_policy>();
    for (int32_t i = 0; i < n_heads; ++i) {
        const auto head = llama_so8t_get_head(model, i);
        policy->heads.push_back({head.debounce, {}});
        for (int32_t j = 0; j < head.n_labels; ++j) {
            policy->heads[i].thresholds.push_back(llama_so8t_get_label(model, i, j).threshold);
        }
    }
    if (params.file && params.file->is_string()) {
        throw std::invalid_argument(params.file->get<std::string>());
    }
    for (const auto & settings : {params.file, params.flags}) {
        if (settings) {
            so8t_policy_apply(*policy, model, *settings);
        }
    }
    policy->think = std::min(policy->think, policy->mode);
    if (!params.has_reviewers) {
        policy->escalation_wait = 0;
    }

    const llama_vocab * vocab = llama_model_get_vocab(model);
    for (const llama_token token : {llama_vocab_eot(vocab), llama_vocab_eos(vocab)}) {
        if (policy->eog == LLAMA_TOKEN_NULL && token != LLAMA_TOKEN_NULL && llama_vocab_is_eog(vocab, token)) {
            policy->eog = token;
        }
    }
    for (llama_token token = 0; policy->eog == LLAMA_TOKEN_NULL && token < llama_vocab_n_tokens(vocab); ++token) {
        if (llama_vocab_is_eog(vocab, token)) {
            policy->eog = token;
        }
    }
    if (policy->mode == SO8T_MODE_ENFORCE && policy->eog == LLAMA_TOKEN_NULL) {
        throw std::invalid_argument("so8t policy: the vocabulary of the model has no token that ends an answer, so "
                                    "nothing can be enforced: use --so8t-policy monitor");
    }
    const std::string text = so8t_policy_json(model, *policy).dump();
    policy->sha256         = hash_sha256_hex(text.data(), text.size());
    return policy;
}

common_json so8t_policy_json(const llama_model * model, const so8t_policy & policy) {
    common_json heads = common_json::object();
    for (size_t i = 0; i < policy.heads.size(); ++i) {
        common_json thresholds = common_json::object();
        for (size_t j = 0; j < policy.heads[i].thresholds.size(); ++j) {
            thresholds[llama_so8t_get_label(model, i, j).name] = so8t_short(policy.heads[i].thresholds[j]);
        }
        heads[llama_so8t_get_head(model, i).name] = common_json::object({
            {"debounce", policy.heads[i].debounce},
            {"thresholds", thresholds},
        });
    }
    return common_json::object({
        {"mode", so8t_mode_name(policy.mode)},
        {"think", so8t_mode_name(policy.think)},
        {"on_refuse", policy.message ? "message" : "stop"},
        {"refusal", policy.refusal},
        {"escalation", policy.escalation},
        {"holdback", policy.holdback},
        {"escalation_wait", policy.escalation_wait},
        {"heads", heads},
    });
}
