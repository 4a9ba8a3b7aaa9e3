#include "so8t-args.h"

#include "arg.h"
#include "common.h"
#include "json.h"
#include "log.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>

// an option that sets a key of the policy
static common_arg so8t_text_arg(const char * name, const char * env, const char * hint, const char * help,
    void (*handler)(common_params &, const std::string &)) {
    return common_arg({name}, hint, help, handler)
        .set_examples({LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_SERVER})
        .set_env(env);
}

static common_arg so8t_count_arg(
    const char * name, const char * env, const char * help, void (*handler)(common_params &, int)) {
    return common_arg({name}, "N", help, handler)
        .set_examples({LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_SERVER})
        .set_env(env);
}

static common_arg so8t_audit_arg(const char * name, const char * env, const char * hint, const char * help,
    void (*handler)(common_params &, const std::string &)) {
    return common_arg({name}, hint, help, handler).set_examples({LLAMA_EXAMPLE_SERVER}).set_env(env);
}

static uint64_t so8t_size(const std::string & text) {
    const size_t n_digits  = text.find_first_not_of("0123456789");
    const std::string unit = n_digits == std::string::npos ? "" : text.substr(n_digits);

    const int shift = unit.empty() ? 0 : unit == "K" ? 10 : unit == "M" ? 20 : unit == "G" ? 30 : -1;
    if (n_digits == 0 || text.empty() || text.size() > 12 || shift < 0) {
        throw std::invalid_argument("found a size of '" + text + "', expected bytes, or a number with K, M or G");
    }
    const uint64_t number = std::stoull(text);
    if (number > UINT64_MAX >> shift) {
        throw std::invalid_argument("found a size of '" + text + "', which is too large");
    }
    return number << shift;
}

std::vector<common_arg> so8t_args() {
#ifndef _WIN32 // there, threads are gone by the time exit handlers run
    // llama.cpp's log is written by a thread: a tool that refuses a file must not exit before its reason is out
    static const int at_exit = std::atexit([]() { common_log_flush(common_log_main()); });
    GGML_UNUSED(at_exit);
#endif
    return {
        common_arg({"--so8t-json"}, "FILE", "SO8T: write the verdicts of every turn to FILE, one JSON object per line",
            [](common_params & params, const std::string & value) {
                // truncated here, so that a path that cannot be written is an error before the model loads
                if (!std::ofstream(value, std::ios::trunc)) {
                    throw std::invalid_argument(string_format("cannot write '%s': %s", value.c_str(), strerror(errno)));
                }
                params.so8t.json_file = value;
            })
            .set_examples({LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_CLI})
            .set_env("LLAMA_ARG_SO8T_JSON"),

        so8t_text_arg("--so8t-policy", "LLAMA_ARG_SO8T_POLICY", "{off,monitor,enforce}",
            "SO8T: off: heads are not read; monitor: verdicts are reported; enforce: they change what is delivered "
            "(default: monitor)",
            [](common_params & params, const std::string & value) {
                so8t_policy_set(params.so8t.policy, "mode", value);
            }),
        so8t_text_arg("--so8t-think", "LLAMA_ARG_SO8T_THINK", "{monitor,enforce}",
            "SO8T: what enforce does inside a think block (default: enforce)",
            [](common_params & params, const std::string & value) {
                so8t_policy_set(params.so8t.policy, "think", value);
            }),
        so8t_text_arg("--so8t-threshold", "LLAMA_ARG_SO8T_THRESHOLD", "HEAD/LABEL=P,...",
            "SO8T: probabilities at which labels act (default: those of the model)",
            [](common_params & params, const std::string & value) {
                so8t_policy_set_thresholds(params.so8t.policy, value);
            }),
        so8t_count_arg("--so8t-debounce", "LLAMA_ARG_SO8T_DEBOUNCE",
            "SO8T: tokens of an answer in a row that must agree (default: that of each head)",
            [](common_params & params, int value) { so8t_policy_set(params.so8t.policy, "debounce", value); }),
        so8t_count_arg("--so8t-holdback", "LLAMA_ARG_SO8T_HOLDBACK",
            "SO8T: tokens withheld from a stream under enforce; as many as the debounce: no token that triggers is "
            "sent (default: 0)",
            [](common_params & params, int value) { so8t_policy_set(params.so8t.policy, "holdback", value); }),
        so8t_text_arg("--so8t-on-refuse", "LLAMA_ARG_SO8T_ON_REFUSE", "{stop,message}",
            "SO8T: a refused answer just ends, or ends with the refusal text (default: message)",
            [](common_params & params, const std::string & value) {
                so8t_policy_set(params.so8t.policy, "on_refuse", value);
            }),
        so8t_text_arg("--so8t-refusal", "LLAMA_ARG_SO8T_REFUSAL", "TEXT", "SO8T: text of a refusal",
            [](common_params & params, const std::string & value) {
                so8t_policy_set(params.so8t.policy, "refusal", value);
            }),
        so8t_text_arg("--so8t-escalation", "LLAMA_ARG_SO8T_ESCALATION", "TEXT",
            "SO8T: text of an escalation that nobody can decide",
            [](common_params & params, const std::string & value) {
                so8t_policy_set(params.so8t.policy, "escalation", value);
            }),
        common_arg({"--so8t-escalation-wait"}, "SECONDS",
            "SO8T: hold escalated answers this long for a reviewer (POST /so8t/escalations/ID) (default: 0: there is "
            "none)",
            [](common_params & params, int value) { so8t_policy_set(params.so8t.policy, "escalation_wait", value); })
            .set_examples({LLAMA_EXAMPLE_SERVER})
            .set_env("LLAMA_ARG_SO8T_ESCALATION_WAIT"),
        so8t_text_arg("--so8t-policy-file", "LLAMA_ARG_SO8T_POLICY_FILE", "FILE",
            "SO8T: JSON file with all of the above; flags override it",
            [](common_params & params, const std::string & value) {
                params.so8t.policy.file = so8t_policy_read(value);
            }),

        so8t_audit_arg("--so8t-audit", "LLAMA_ARG_SO8T_AUDIT", "FILE",
            "SO8T: append one JSON line per request to FILE, chained by hashes (see docs/audit.md)",
            [](common_params & params, const std::string & value) { params.so8t.audit.file = value; }),
        common_arg({"--so8t-audit-text"},
            "SO8T: texts in the audit log, not only their keyed digests (default: no texts)",
            [](common_params & params) { params.so8t.audit.text = true; })
            .set_examples({LLAMA_EXAMPLE_SERVER})
            .set_env("LLAMA_ARG_SO8T_AUDIT_TEXT"),
        so8t_audit_arg("--so8t-audit-key", "LLAMA_ARG_SO8T_AUDIT_KEY", "FILE",
            "SO8T: key of the digests, 64 hex digits; made if missing (default: the audit file with .key)",
            [](common_params & params, const std::string & value) { params.so8t.audit.key_file = value; }),
        so8t_audit_arg("--so8t-audit-max-size", "LLAMA_ARG_SO8T_AUDIT_MAX_SIZE", "BYTES",
            "SO8T: begin a new audit file at this size, K, M and G allowed (default: 0: never)",
            [](common_params & params, const std::string & value) { params.so8t.audit.max_size = so8t_size(value); }),
        so8t_audit_arg("--so8t-audit-checkpoint", "LLAMA_ARG_SO8T_AUDIT_CHECKPOINT", "FILE",
            "SO8T: keep number and hash of the newest audit line in FILE, to be copied elsewhere",
            [](common_params & params, const std::string & value) { params.so8t.audit.checkpoint_file = value; }),
        so8t_audit_arg("--so8t-audit-on-error", "LLAMA_ARG_SO8T_AUDIT_ON_ERROR", "{refuse,continue}",
            "SO8T: under enforce, refuse service while the audit log cannot be written, or go on without it (default: "
            "refuse)",
            [](common_params & params, const std::string & value) {
                if (value != "refuse" && value != "continue") {
                    throw std::invalid_argument(
                        "--so8t-audit-on-error: found '" + value + "', expected refuse or continue");
                }
                params.so8t.audit_required = value == "refuse";
            }),
    };
}

bool so8t_init(const llama_model * model, common_params & params) {
    try {
        params.sampling.so8t.policy = so8t_policy_init(model, params.so8t.policy);
        return true;
    } catch (const std::exception & e) {
        LOG_ERR("error: %s\n", e.what());
        return false;
    }
}
