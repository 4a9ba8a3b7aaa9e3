#pragma once

#include "so8t-policy.h"

#include "json.h"

#include <functional>
#include <string>
#include <vector>

// The settings of a policy, one row each. The JSON file, the flags with their environment variables and help texts, the
// settings in force and their hash loop over this table, and know no key by name. docs/howto.md adds one.

// what a setting may be, and where it stands in a policy
struct so8t_policy_value {
    std::string hint; // in the help, behind the flag

    // what the text of a flag says; given: the value from flags before it, or null
    std::function<common_json(const std::string & text, const common_json & given)> read;

    // throws std::invalid_argument, with what was found and expected; where: the file or the flag, and the key
    std::function<void(const std::string & where, const common_json & value)> check;

    // a value that was checked; throws std::invalid_argument if it does not fit the model
    std::function<void(so8t_policy & policy, const llama_model * model, const common_json & value)> set;

    // the value in force; null: another setting contains it
    std::function<common_json(const so8t_policy & policy, const llama_model * model)> get;
};

struct so8t_policy_key {
    const char * key; // in the JSON file, and of the settings in force
    const char * flag;
    const char * env; // variable that is read where the flag is not given
    so8t_policy_value value;
    const char * help;
    const char * default_text = nullptr; // in the help, where a so8t_policy without a model does not have the default
    bool server_only          = false;   // llama-server alone has the flag
};

so8t_policy_value so8t_count(int32_t so8t_policy::* field, int32_t min, int32_t max, const char * hint = "N");
so8t_policy_value so8t_count_or_auto(int32_t so8t_policy::* field, int32_t min, int32_t max, int32_t as_auto);
so8t_policy_value so8t_seconds(double so8t_policy::* field, int32_t max); // with fractions
so8t_policy_value so8t_text(std::string so8t_policy::* field);
so8t_policy_value so8t_choice(const std::vector<const char *> & names, std::function<void(so8t_policy &, size_t)> set,
    std::function<const char *(const so8t_policy &)> get);
so8t_policy_value so8t_debounce_of_all();
so8t_policy_value so8t_heads_of_model(); // the flag sets thresholds

// one of some values of an enum
template <typename T>
so8t_policy_value so8t_choice(T so8t_policy::* field, const std::vector<T> & choices, const char * (*name)(T)) {
    std::vector<const char *> names;
    for (const T choice : choices) {
        names.push_back(name(choice));
    }
    return so8t_choice(
        names, [=](so8t_policy & policy, size_t i) { policy.*field = choices[i]; },
        [=](const so8t_policy & policy) { return name(policy.*field); });
}

// in the order of the settings in force, which their hash depends on; "debounce" before the heads that override it
inline const so8t_policy_key so8t_policy_keys[] = {
    {"mode", "--so8t-policy", "LLAMA_ARG_SO8T_POLICY",
        so8t_choice(&so8t_policy::mode, {SO8T_MODE_OFF, SO8T_MODE_MONITOR, SO8T_MODE_ENFORCE}, so8t_mode_name),
        "off: heads are not read; monitor: verdicts are reported; enforce: they change what is delivered"},
    {"think", "--so8t-think", "LLAMA_ARG_SO8T_THINK",
        so8t_choice(&so8t_policy::think, {SO8T_MODE_MONITOR, SO8T_MODE_ENFORCE}, so8t_mode_name),
        "what enforce does inside a think block"},
    {"on_refuse", "--so8t-on-refuse", "LLAMA_ARG_SO8T_ON_REFUSE",
        so8t_choice(&so8t_policy::on_refuse, {SO8T_ON_REFUSE_STOP, SO8T_ON_REFUSE_MESSAGE}, so8t_on_refuse_name),
        "a refused answer just ends, or ends with the refusal text"},
    {"refusal", "--so8t-refusal", "LLAMA_ARG_SO8T_REFUSAL", so8t_text(&so8t_policy::refusal), "text of a refusal"},
    {"refusal_in", "--so8t-refusal-in", "LLAMA_ARG_SO8T_REFUSAL_IN",
        so8t_choice(&so8t_policy::refusal_in, {SO8T_REFUSAL_IN_CONTENT, SO8T_REFUSAL_IN_REFUSAL, SO8T_REFUSAL_IN_BOTH},
            so8t_refusal_in_name),
        "where that text stands in chat completions and responses: as ordinary content, in the field for refusals, or "
        "both",
        nullptr, true},
    {"escalation", "--so8t-escalation", "LLAMA_ARG_SO8T_ESCALATION", so8t_text(&so8t_policy::escalation),
        "text of an escalation that nobody can decide"},
    {"debounce", "--so8t-debounce", "LLAMA_ARG_SO8T_DEBOUNCE", so8t_debounce_of_all(),
        "tokens of an answer that must agree, in a row or of a window", "that of each head"},
    {"holdback", "--so8t-holdback", "LLAMA_ARG_SO8T_HOLDBACK",
        so8t_count_or_auto(&so8t_policy::holdback, 0, 1000, SO8T_HOLDBACK_AUTO),
        "tokens withheld from a stream under enforce; auto: as many as the heads need, so that no token of a run that "
        "triggers is sent"},
    {"escalation_wait", "--so8t-escalation-wait", "LLAMA_ARG_SO8T_ESCALATION_WAIT",
        so8t_seconds(&so8t_policy::escalation_wait, 86400),
        "hold escalated answers this long for a reviewer (POST /so8t/escalations/ID); 0: there is none", nullptr, true},
    {"turns", "--so8t-turns", "LLAMA_ARG_SO8T_TURNS",
        so8t_choice(&so8t_policy::turns, {SO8T_TURNS_BOTH, SO8T_TURNS_CONTEXT, SO8T_TURNS_ALONE}, so8t_turns_name),
        "turns of a conversation are read with all that stands before them, alone, or both: the stricter verdict "
        "counts",
        nullptr, true},
    {"system_texts", "--so8t-system-texts", "LLAMA_ARG_SO8T_SYSTEM_TEXTS",
        so8t_choice(
            &so8t_policy::system_texts, {SO8T_SYSTEM_TEXTS_ALONE, SO8T_SYSTEM_TEXTS_CONTEXT}, so8t_system_texts_name),
        "texts of the system and of tools are read alone as well, or only with the turns behind them", nullptr, true},
    {"refused_turns", "--so8t-refused-turns", "LLAMA_ARG_SO8T_REFUSED_TURNS",
        so8t_choice(
            &so8t_policy::refused_turns, {SO8T_REFUSED_TURNS_NOTE, SO8T_REFUSED_TURNS_ACT}, so8t_refused_turns_name),
        "a turn that the guard has refused already is only told, or refuses what follows as well", nullptr, true},
    {"raw_prompts", "--so8t-raw-prompts", "LLAMA_ARG_SO8T_RAW_PROMPTS",
        so8t_choice(&so8t_policy::raw_prompts, {SO8T_RAW_PROMPTS_JUDGE, SO8T_RAW_PROMPTS_REFUSE, SO8T_RAW_PROMPTS_LAST},
            so8t_raw_prompts_name),
        "prompts that a client has made itself: their turns are read, they are not served, or their last token is read",
        nullptr, true},
    {"request_lora", "--so8t-request-lora", "LLAMA_ARG_SO8T_REQUEST_LORA",
        so8t_choice(
            &so8t_policy::request_lora, {SO8T_REQUEST_LORA_REFUSE, SO8T_REQUEST_LORA_ALLOW}, so8t_request_lora_name),
        "adapters that a client chooses under enforce: it would be judged by them as well", nullptr, true},
    {"heads", "--so8t-threshold", "LLAMA_ARG_SO8T_THRESHOLD", so8t_heads_of_model(),
        "probabilities at which labels act", "those of the model"},
};

// help of the flag, with the default
std::string so8t_policy_help(const so8t_policy_key & key);

// stops with a message of the form "WHERE: found VALUE, expected WHAT"
[[noreturn]] void so8t_policy_error(const std::string & where, const common_json & found, const std::string & expected);
