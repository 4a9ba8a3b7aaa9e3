#include "so8t-policy-settings.h"

#include "so8t-json.h"
#include "so8t-policy-keys.h"

#include "json.h"

#include "hash/hash.h"

#include <algorithm>
#include <fstream>
#include <stdexcept>

static const size_t SO8T_POLICY_MAX_BYTES = 1 << 20;

//
// settings from a file
//

static const so8t_policy_key & so8t_policy_find_key(const std::string & where, const std::string & name) {
    std::string expected;
    for (const so8t_policy_key & key : so8t_policy_keys) {
        if (name == key.key) {
            return key;
        }
        expected += (expected.empty() ? "" : ", ") + std::string(key.key);
    }
    so8t_policy_error(where, name, "one of the keys " + expected);
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
        so8t_policy_find_key("'" + path + "'", key).value.check("'" + path + "': " + key, value);
    }
    return policy;
}

so8t_policy_file so8t_policy_read(const std::string & path) {
    try {
        return {std::make_shared<common_json>(so8t_policy_parse(path)), ""};
    } catch (const std::exception & e) {
        return {nullptr, e.what()};
    }
}

//
// settings from flags
//

void so8t_policy_set(so8t_policy_params & params, const so8t_policy_key & key, const std::string & text) {
    auto flags              = std::make_shared<common_json>(params.flags ? *params.flags : common_json::object());
    const common_json value = key.value.read(text, flags->value(key.key, common_json()));
    key.value.check(std::string("flag: ") + key.key, value);
    (*flags)[key.key] = value;
    params.flags      = flags;
}

//
// the policy for a model
//

static llama_token so8t_find_eog(const llama_vocab * vocab) {
    for (const llama_token token : {llama_vocab_eot(vocab), llama_vocab_eos(vocab)}) {
        if (token != LLAMA_TOKEN_NULL && llama_vocab_is_eog(vocab, token)) {
            return token;
        }
    }
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        if (llama_vocab_is_eog(vocab, token)) {
            return token;
        }
    }
    return LLAMA_TOKEN_NULL;
}

so8t_mode so8t_policy_mode(const so8t_policy_params & params) {
    so8t_policy policy;
    const so8t_policy_key & key = so8t_policy_find_key("", "mode");
    for (const auto & settings : {params.file.settings, params.flags}) {
        if (settings && settings->contains(key.key)) {
            key.value.set(policy, nullptr, settings->at(key.key));
        }
    }
    return policy.mode;
}

static so8t_policy::head so8t_head_of(const llama_model * model, int32_t i_head) {
    const auto head = llama_so8t_get_head(model, i_head);
    so8t_policy::head result;
    result.name        = head.name;
    result.scope       = head.scope;
    result.rule        = head.rule;
    result.fitted      = head.fitted;
    result.debounce    = head.debounce;
    result.temperature = head.temperature;
    result.link        = head.link;
    result.aggregation = head.aggregation;
    result.ema_alpha   = head.ema_alpha;
    result.window      = head.window;
    result.depends_on  = head.depends_on;
    result.prompt_aggregations.assign(head.prompt_aggregations, head.prompt_aggregations + head.n_prompt_aggregations);
    result.prompt_thresholds.assign(
        head.prompt_thresholds, head.prompt_thresholds + head.n_prompt_aggregations * head.n_labels);
    for (int32_t i = 0; i < head.n_labels; ++i) {
        const auto label = llama_so8t_get_label(model, i_head, i);
        result.labels.push_back(label.name);
        result.actions.push_back(label.action);
        result.thresholds.push_back(label.threshold);
    }
    return result;
}

// more positions than a window has never agree
static void so8t_check_debounce(const so8t_policy & policy) {
    for (const auto & head : policy.heads) {
        if (head.aggregation == LLAMA_SO8T_AGGREGATION_WINDOW && head.debounce > head.window) {
            so8t_policy_error("heads." + head.name + ".debounce", head.debounce,
                "at most " + std::to_string(head.window) + ", the positions of the window of this head");
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
        policy->heads.push_back(so8t_head_of(model, i));
    }
    if (!params.file.error.empty()) {
        throw std::invalid_argument(params.file.error);
    }
    for (const auto & settings : {params.file.settings, params.flags}) {
        for (const so8t_policy_key & key : so8t_policy_keys) {
            if (settings && settings->contains(key.key)) {
                key.value.set(*policy, model, settings->at(key.key));
            }
        }
    }
    so8t_check_debounce(*policy);
    policy->think = std::min(policy->think, policy->mode);
    if (policy->holdback == SO8T_HOLDBACK_AUTO) {
        policy->holdback = policy->holdback_needed();
    }
    if (!params.has_reviewers) { // no server: llama-cli shows the content
        policy->escalation_wait = 0;
        policy->refusal_in      = SO8T_REFUSAL_IN_BOTH;
    }
    policy->eog = so8t_find_eog(llama_model_get_vocab(model));
    if (policy->mode == SO8T_MODE_ENFORCE && policy->eog == LLAMA_TOKEN_NULL) {
        throw std::invalid_argument("so8t policy: the vocabulary of the model has no token that ends an answer, so "
                                    "nothing can be enforced: use --so8t-policy monitor");
    }
    const std::string text = so8t_policy_json(model, *policy).dump();
    policy->sha256         = hash_sha256_hex(text.data(), text.size());
    return policy;
}

common_json so8t_policy_json(const llama_model * model, const so8t_policy & policy) {
    common_json settings = common_json::object();
    for (const so8t_policy_key & key : so8t_policy_keys) {
        const common_json value = key.value.get(policy, model);
        if (!value.is_null()) {
            settings[key.key] = value;
        }
    }
    return settings;
}
