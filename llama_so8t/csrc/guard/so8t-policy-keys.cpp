#include "so8t-policy-keys.h"

#include "common.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <stdexcept>

static const size_t SO8T_TEXT_MAX_BYTES  = 4096;
static const size_t SO8T_FOUND_MAX_BYTES = 200; // of a wrong value in a message
static const int32_t SO8T_MAX_DEBOUNCE   = 1000;

void so8t_policy_error(const std::string & where, const common_json & found, const std::string & expected) {
    std::string text = found.dump_safe();
    if (text.size() > SO8T_FOUND_MAX_BYTES) {
        text = text.substr(0, SO8T_FOUND_MAX_BYTES) + " ...";
    }
    throw std::invalid_argument("so8t policy: " + where + ": found " + text + ", expected " + expected);
}

//
// what values may be
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

static void so8t_check_count(
    const std::string & where, const common_json & value, int64_t min, int64_t max, const char * otherwise = "") {
    if (!value.is_number_integer() || value.get<int64_t>() < min || value.get<int64_t>() > max) {
        so8t_policy_error(where, value,
            string_format("a whole number from %lld to %lld%s", (long long) min, (long long) max, otherwise));
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
            so8t_check_count(at, value, 1, SO8T_MAX_DEBOUNCE);
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

static common_json so8t_read_text(const std::string & text, const common_json &) {
    return text;
}

//
// kinds of values
//

// what is no number stays a text, which the check names
static common_json so8t_read_number(const std::string & text, const common_json &) {
    const common_json number = common_json::parse_no_throw(text);
    return !number.is_discarded() && number.is_number() ? number : common_json(text);
}

so8t_policy_value so8t_count(int32_t so8t_policy::* field, int32_t min, int32_t max, const char * hint) {
    so8t_policy_value value;
    value.hint  = hint;
    value.read  = so8t_read_number;
    value.check = [min, max](const std::string & where, const common_json & value) {
        so8t_check_count(where, value, min, max);
    };
    value.set = [field](so8t_policy & policy, const llama_model *, const common_json & value) {
        policy.*field = value.get<int32_t>();
    };
    value.get = [field](const so8t_policy & policy, const llama_model *) { return common_json(policy.*field); };
    return value;
}

so8t_policy_value so8t_count_or_auto(int32_t so8t_policy::* field, int32_t min, int32_t max, int32_t as_auto) {
    so8t_policy_value value       = so8t_count(field, min, max, "N|auto");
    const so8t_policy_value count = value;

    value.check = [min, max](const std::string & where, const common_json & value) {
        if (value != "auto") {
            so8t_check_count(where, value, min, max, " or \"auto\"");
        }
    };
    value.set = [count, as_auto](so8t_policy & policy, const llama_model * model, const common_json & value) {
        count.set(policy, model, value == "auto" ? common_json(as_auto) : value);
    };
    value.get = [field, as_auto](const so8t_policy & policy, const llama_model *) {
        return policy.*field == as_auto ? common_json("auto") : common_json(policy.*field);
    };
    return value;
}

so8t_policy_value so8t_seconds(double so8t_policy::* field, int32_t max) {
    so8t_policy_value value;
    value.hint  = "SECONDS";
    value.read  = so8t_read_number;
    value.check = [max](const std::string & where, const common_json & value) {
        if (!value.is_number() || !(value.get<double>() >= 0.0 && value.get<double>() <= max)) {
            so8t_policy_error(where, value, string_format("a number of seconds from 0 to %d", max));
        }
    };
    value.set = [field](so8t_policy & policy, const llama_model *, const common_json & value) {
        policy.*field = value.get<double>();
    };
    value.get = [field](const so8t_policy & policy, const llama_model *) {
        const double seconds = policy.*field;
        return seconds == std::floor(seconds) ? common_json((int64_t) seconds) : common_json(seconds);
    };
    return value;
}

so8t_policy_value so8t_text(std::string so8t_policy::* field) {
    so8t_policy_value value;
    value.hint  = "TEXT";
    value.read  = so8t_read_text;
    value.check = so8t_check_text;
    value.set   = [field](so8t_policy & policy, const llama_model *, const common_json & value) {
        policy.*field = value.get<std::string>();
    };
    value.get = [field](const so8t_policy & policy, const llama_model *) { return common_json(policy.*field); };
    return value;
}

so8t_policy_value so8t_choice(const std::vector<const char *> & names, std::function<void(so8t_policy &, size_t)> set,
    std::function<const char *(const so8t_policy &)> get) {
    so8t_policy_value value;
    for (const char * name : names) {
        value.hint += (value.hint.empty() ? "{" : ",") + std::string(name);
    }
    value.hint += "}";
    value.read  = so8t_read_text;
    value.check = [names](
                      const std::string & where, const common_json & value) { so8t_check_choice(where, value, names); };
    value.set   = [names, set](so8t_policy & policy, const llama_model *, const common_json & value) {
        set(policy, std::find(names.begin(), names.end(), value.get<std::string>()) - names.begin());
    };
    value.get = [get](const so8t_policy & policy, const llama_model *) { return common_json(get(policy)); };
    return value;
}

so8t_policy_value so8t_debounce_of_all() {
    so8t_policy_value value = so8t_count(nullptr, 1, SO8T_MAX_DEBOUNCE);
    value.set               = [](so8t_policy & policy, const llama_model *, const common_json & value) {
        for (auto & head : policy.heads) {
            head.debounce = value.get<int32_t>();
        }
    };
    value.get = [](const so8t_policy &, const llama_model *) { return common_json(); }; // stands in "heads"
    return value;
}

//
// heads
//

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

static common_json so8t_read_thresholds(const std::string & text, const common_json & given) {
    common_json heads = given.is_null() ? common_json::object() : given;
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
    return heads;
}

static void so8t_set_heads(so8t_policy & policy, const llama_model * model, const common_json & heads) {
    const auto head_name = [&](int32_t i) { return std::string(llama_so8t_get_head(model, i).name); };
    for (const auto & [name, given] : heads.items()) {
        const int32_t i_head = so8t_find(policy.heads.size(), head_name, name, "heads");

        auto & head   = policy.heads[i_head];
        head.debounce = given.value("debounce", head.debounce);

        const auto label_name = [&](int32_t i) { return std::string(llama_so8t_get_label(model, i_head, i).name); };
        const common_json thresholds = given.value("thresholds", common_json::object());
        if (!thresholds.empty() && head.rule == LLAMA_SO8T_RULE_ARGMAX) {
            so8t_policy_error("heads." + name + ".thresholds", thresholds,
                "none: this head has the rule argmax, by which the label with the largest probability acts");
        }
        for (const auto & [label, threshold] : thresholds.items()) {
            const int32_t i_label = so8t_find(
                head.thresholds.size(), label_name, label, "heads." + name + ".thresholds");
            head.thresholds[i_label] = threshold.get<float>();
            for (size_t k = 0; k < head.prompt_aggregations.size(); ++k) { // it acts however a prompt is read
                head.prompt_thresholds[k * head.labels.size() + i_label] = threshold.get<float>();
            }
        }
    }
}

static common_json so8t_get_heads(const so8t_policy & policy, const llama_model *) {
    common_json heads = common_json::object();
    for (size_t i = 0; i < policy.heads.size(); ++i) {
        common_json head = common_json::object({{"debounce", policy.heads[i].debounce}});
        if (policy.heads[i].rule == LLAMA_SO8T_RULE_THRESHOLD) {
            head["thresholds"] = policy.heads[i].thresholds_json();
        }
        if (policy.heads[i].reads_texts() && policy.heads[i].rule == LLAMA_SO8T_RULE_THRESHOLD) {
            head["prompt_thresholds"] = policy.heads[i].prompt_thresholds_json();
        }
        const common_json aggregation = policy.heads[i].aggregation_json();
        if (!aggregation.empty()) {
            head["aggregation"] = aggregation;
        }
        heads[policy.heads[i].name] = head;
    }
    return heads;
}

so8t_policy_value so8t_heads_of_model() {
    so8t_policy_value value;
    value.hint  = "HEAD/LABEL=P,...";
    value.read  = so8t_read_thresholds;
    value.check = [](const std::string & where, const common_json & value) {
        so8t_check_object(where, value, "heads");
        for (const auto & [name, head] : value.items()) {
            so8t_check_head(where + "." + name, head);
        }
    };
    value.set = so8t_set_heads;
    value.get = so8t_get_heads;
    return value;
}

std::string so8t_policy_help(const so8t_policy_key & key) {
    std::string default_text = key.default_text ? key.default_text : "";
    if (!key.default_text) {
        const common_json value = key.value.get(so8t_policy(), nullptr);
        default_text            = value.is_string() ? value.get<std::string>() : value.dump();
    }
    return std::string("SO8T: ") + key.help + " (default: " + default_text + ")";
}
