#include "so8t-args.h"

#include "so8t-audit-pattern.h"
#include "so8t-heads-files.h"
#include "so8t-policy-keys.h"

#include "arg.h"
#include "common.h"
#include "json.h"
#include "log.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

// llama.cpp's handlers are plain functions, so each flag of the policy has one of its own
template <size_t I>
static void so8t_policy_handler(common_params & params, const std::string & text) {
    so8t_policy_set(params.so8t.policy, so8t_policy_keys[I], text);
}

template <size_t... I>
static std::vector<common_arg> so8t_policy_args(std::index_sequence<I...>) {
    static void (*const handlers[])(common_params &, const std::string &) = {so8t_policy_handler<I>...};

    std::vector<common_arg> args;
    for (size_t i = 0; i < sizeof...(I); ++i) {
        const so8t_policy_key & key = so8t_policy_keys[i];
        common_arg arg({key.flag}, key.value.hint.c_str(), so8t_policy_help(key), handlers[i]);
        arg.set_env(key.env);
        if (key.server_only) {
            arg.set_examples({LLAMA_EXAMPLE_SERVER});
        } else {
            arg.set_examples({LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_SERVER});
        }
        args.push_back(arg);
    }
    args.push_back(common_arg({"--so8t-policy-file"}, "FILE",
        "SO8T: JSON file with all of the above; flags override it",
        [](common_params & params, const std::string & value) { params.so8t.policy.file = so8t_policy_read(value); })
            .set_examples({LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_SERVER})
            .set_env("LLAMA_ARG_SO8T_POLICY_FILE"));
    args.push_back(common_arg({"--so8t-require-heads"},
        "SO8T: a model without heads, or with none that was fitted, is an error (default: it is loaded, and nothing is "
        "judged)",
        [](common_params & params) { params.so8t.require_heads = true; })
            .set_examples({LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_SERVER})
            .set_env("LLAMA_ARG_SO8T_REQUIRE_HEADS"));
    args.push_back(common_arg({SO8T_HEADS_OPTION}, "FILE",
        "SO8T: heads file of this model, as so8t convert --arch stock writes it; several with commas, or one in each "
        "of several such options (default: none)",
        [](common_params & params, const std::string & value) { params.so8t.heads = so8t_heads_files(value); })
            .set_examples({LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_SERVER})
            .set_env("LLAMA_ARG_SO8T_HEADS"));
    return args;
}

static common_arg so8t_server_arg(const char * name, const char * env, const char * hint, const char * help,
    void (*handler)(common_params &, const std::string &)) {
    return common_arg({name}, hint, help, handler).set_examples({LLAMA_EXAMPLE_SERVER}).set_env(env);
}

// bytes, as --split-max-size of llama-gguf-split and so8t convert says them: M is a million
static uint64_t so8t_size(const std::string & text) {
    const size_t n_digits  = text.find_first_not_of("0123456789");
    const std::string unit = n_digits == std::string::npos ? "" : text.substr(n_digits);

    const uint64_t scale = unit.empty() ? 1 : unit == "K" ? 1000 : unit == "M" ? 1000000 : unit == "G" ? 1000000000 : 0;
    if (n_digits == 0 || text.empty() || text.size() > 12 || scale == 0) {
        throw std::invalid_argument("found a size of '" + text + "', expected bytes, or a number with K, M or G");
    }
    const uint64_t number = std::stoull(text);
    if (number > UINT64_MAX / scale) {
        throw std::invalid_argument("found a size of '" + text + "', which is too large");
    }
    return number * scale;
}

static const std::string & so8t_audit_name(const std::string & path) {
    so8t_check_audit_pattern(path);
    return path;
}

static std::vector<common_arg> so8t_audit_args() {
    return {
        so8t_server_arg("--so8t-audit", "LLAMA_ARG_SO8T_AUDIT", "FILE",
            "SO8T: append one JSON line per request to FILE, chained by hashes (see docs/audit.md); {model} in the "
            "name "
            "of this file and the next ones is the name of the model",
            [](common_params & params, const std::string & value) { params.so8t.audit.file = so8t_audit_name(value); }),
        common_arg({"--so8t-audit-text"}, {"--no-so8t-audit-text"},
            "SO8T: texts in the audit log, not only their keyed digests (default: no texts)",
            [](common_params & params, bool value) { params.so8t.audit.text = value; })
            .set_examples({LLAMA_EXAMPLE_SERVER})
            .set_env("LLAMA_ARG_SO8T_AUDIT_TEXT"),
        so8t_server_arg("--so8t-audit-key", "LLAMA_ARG_SO8T_AUDIT_KEY", "FILE",
            "SO8T: key of the digests, 64 hex digits; made if missing (default: the audit file with .key)",
            [](common_params & params, const std::string & value) {
                params.so8t.audit.key_file = so8t_audit_name(value);
            }),
        so8t_server_arg("--so8t-audit-max-size", "LLAMA_ARG_SO8T_AUDIT_MAX_SIZE", "N[K|M|G]",
            "SO8T: begin a new audit file at this many bytes; K, M and G: 10^3, 10^6 and 10^9 of them (default: 0: "
            "never)",
            [](common_params & params, const std::string & value) { params.so8t.audit.max_size = so8t_size(value); }),
        so8t_server_arg("--so8t-audit-checkpoint", "LLAMA_ARG_SO8T_AUDIT_CHECKPOINT", "FILE",
            "SO8T: keep number and hash of the newest audit line in FILE, to be copied elsewhere",
            [](common_params & params, const std::string & value) {
                params.so8t.audit.checkpoint_file = so8t_audit_name(value);
            }),
        so8t_server_arg("--so8t-audit-on-error", "LLAMA_ARG_SO8T_AUDIT_ON_ERROR", "{refuse,continue}",
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

// names between commas
static std::vector<std::string> so8t_gateway_names(const std::string & text) {
    static const std::vector<std::string> known = {"litellm", "agentgateway"};
    const std::vector<std::string> names        = string_split<std::string>(text, ',');
    for (const auto & name : names) {
        if (std::find(known.begin(), known.end(), name) == known.end()) {
            throw std::invalid_argument("found a gateway of '" + name + "', expected " + string_join(known, " or "));
        }
    }
    return names;
}

static common_arg so8t_gateway_arg() {
    return common_arg({"--so8t-gateway"}, "NAMES",
        "SO8T: serve the guardrail endpoints of these gateways: litellm, agentgateway, or both with a comma (default: "
        "none)",
        [](common_params & params, const std::string & value) { params.so8t.gateways = so8t_gateway_names(value); })
        .set_examples({LLAMA_EXAMPLE_SERVER})
        .set_env("LLAMA_ARG_SO8T_GATEWAY");
}

static common_arg so8t_otlp_arg() {
    return common_arg({"--so8t-otlp"}, "URL",
        "SO8T: send an OpenTelemetry event for each verdict to this collector, by OTLP over HTTP, as in "
        "http://localhost:4318 (default: none is sent)",
        [](common_params & params, const std::string & value) { params.so8t.otlp = value; })
        .set_examples({LLAMA_EXAMPLE_SERVER})
        .set_env("LLAMA_ARG_SO8T_OTLP");
}

// throws std::invalid_argument: it is no number from 0 to max
static double so8t_seconds(const std::string & text, double max) {
    char * end           = nullptr;
    const double seconds = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !(seconds >= 0 && seconds <= max)) {
        throw std::invalid_argument(
            string_format("found '%s', expected a number of seconds from 0 to %g", text.c_str(), max));
    }
    return seconds;
}

// stands in paths, and before a "."
static std::string so8t_checked_server_id(const std::string & id) {
    const bool known = std::all_of(
        id.begin(), id.end(), [](unsigned char c) { return (c < 128 && std::isalnum(c)) || c == '-' || c == '_'; });
    if (id.empty() || id.size() > 64 || !known) {
        throw std::invalid_argument(
            "--so8t-server-id: found '" + id + "', expected 1 to 64 letters, digits, '-' and '_'");
    }
    return id;
}

static std::vector<common_arg> so8t_escalation_args() {
    return {
        so8t_server_arg("--so8t-escalation-grace", "LLAMA_ARG_SO8T_ESCALATION_GRACE", "SECONDS",
            "SO8T: a held answer whose client went away is kept this long for the client to repeat its request "
            "(default: 15)",
            [](common_params & params, const std::string & value) {
                params.so8t.escalation.grace = so8t_seconds(value, 3600);
            }),
        so8t_server_arg("--so8t-escalation-ping", "LLAMA_ARG_SO8T_ESCALATION_PING", "SECONDS",
            "SO8T: a stream that is held gets a comment this often, unless --sse-ping-interval is shorter or switches "
            "comments off; 0: none while it is held (default: 5)",
            [](common_params & params, const std::string & value) {
                params.so8t.escalation.ping = so8t_seconds(value, 3600);
            }),
        so8t_server_arg("--so8t-server-id", "LLAMA_ARG_SO8T_SERVER_ID", "ID",
            "SO8T: name of this server in the ids of escalations, by which a balancer routes decisions; letters, "
            "digits, - and _ (default: a hash of host name and port)",
            [](common_params & params, const std::string & value) {
                params.so8t.escalation.server_id = so8t_checked_server_id(value);
            }),
        so8t_server_arg("--so8t-reviewers", "LLAMA_ARG_SO8T_REVIEWERS", "FILE",
            "SO8T: names of reviewers and hashes of their keys, one pair on a line; a decision without such a key is "
            "refused (default: a reviewer is who the request says)",
            [](common_params & params, const std::string & value) { params.so8t.escalation.reviewers_file = value; }),
        so8t_server_arg("--so8t-webhook", "LLAMA_ARG_SO8T_WEBHOOK", "URL",
            "SO8T: URL that is told when an answer is held and when it is decided, by signed POST requests (default: "
            "none)",
            [](common_params & params, const std::string & value) { params.so8t.escalation.webhook_url = value; }),
        so8t_server_arg("--so8t-webhook-key", "LLAMA_ARG_SO8T_WEBHOOK_KEY", "FILE",
            "SO8T: key that signs them, whsec_ and base64, as Standard Webhooks has it (default: none; --so8t-webhook "
            "needs one)",
            [](common_params & params, const std::string & value) { params.so8t.escalation.webhook_key_file = value; }),
    };
}

static common_arg so8t_json_arg() {
    return common_arg({"--so8t-json"}, "FILE",
        "SO8T: write the verdicts of every turn to FILE, one JSON object per line",
        [](common_params & params, const std::string & value) {
            // truncated here, so that a path that cannot be written is an error before the model loads
            if (!std::ofstream(value, std::ios::trunc)) {
                throw std::invalid_argument(string_format("cannot write '%s': %s", value.c_str(), strerror(errno)));
            }
            params.so8t.json_file = value;
        })
        .set_examples({LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_CLI})
        .set_env("LLAMA_ARG_SO8T_JSON");
}

std::vector<common_arg> so8t_args() {
#ifndef _WIN32 // there, threads are gone by the time exit handlers run
    // llama.cpp's log is written by a thread: a tool that refuses a file must not exit before its reason is out
    static const int at_exit = std::atexit([]() { common_log_flush(common_log_main()); });
    GGML_UNUSED(at_exit);
#endif
    std::vector<common_arg> args = {so8t_json_arg(), so8t_gateway_arg(), so8t_otlp_arg()};
    for (const auto & group : {so8t_policy_args(std::make_index_sequence<std::size(so8t_policy_keys)>()),
             so8t_escalation_args(), so8t_audit_args()}) {
        args.insert(args.end(), group.begin(), group.end());
    }
    return args;
}

// a holdback that is less than the heads need is the choice of the operator, who is told what it means
static void so8t_tell_holdback(const so8t_policy & policy) {
    const int32_t n_sent = policy.holdback_needed() - policy.holdback;
    if (n_sent > 0) {
        LOG_WRN(
            "so8t: a stream can have sent %d of the %d tokens of a run that triggers: the holdback is %d (auto: none "
            "of them)\n",
            n_sent, policy.holdback_needed(), policy.holdback);
    }
}

// one line that llama-cli shows, too, whose log has errors only
#define SO8T_WARN(...) LOG_WRNV(LOG_LEVEL_ERROR, __VA_ARGS__)

// llama.cpp takes every value of a flag's variable that it does not know for false
static void so8t_check_flag(const char * variable) {
    const char * value = std::getenv(variable);
    if (value && *value && !common_arg_utils::is_truthy(value) && !common_arg_utils::is_falsey(value)) {
        throw std::invalid_argument(std::string(variable) + ": found '" + value + "', expected 1 or 0");
    }
}

// heads that cannot act are said, because the user believes to be guarded by them
static void so8t_check_heads(const llama_model * model, const so8t_params & params) {
    const int32_t n_heads = llama_so8t_n_heads(model);
    int32_t n_fitted      = 0;
    for (int32_t i = 0; i < n_heads; ++i) {
        n_fitted += llama_so8t_get_head(model, i).fitted;
    }
    const char * found = n_heads == 0 ? "has no heads" : "has no head that was fitted";
    if (n_fitted == 0 && params.require_heads) {
        throw std::invalid_argument(
            std::string("--so8t-require-heads: the model ") + found + ", expected one that judges a text");
    }
    if (n_fitted == 0 && so8t_policy_mode(params.policy) == SO8T_MODE_ENFORCE) {
        SO8T_WARN("warning: so8t: the policy is enforce, but the model %s, so nothing is enforced\n", found);
    } else if (n_fitted < n_heads && common_log_get_verbosity_thold() < LOG_LEVEL_WARN) { // the library has said it
        SO8T_WARN("warning: so8t: %d of the %d heads of the model were never fitted and do not act\n",
            n_heads - n_fitted, n_heads);
    }
}

bool so8t_init(llama_model * model, common_params & params) {
    try {
        so8t_check_flag("LLAMA_ARG_SO8T_REQUIRE_HEADS");
        if (!so8t_load_heads_files(model, params)) {
            return false;
        }
        so8t_check_heads(model, params.so8t);
        params.sampling.so8t.policy = so8t_policy_init(model, params.so8t.policy);
        if (params.sampling.so8t.policy) {
            so8t_tell_holdback(*params.sampling.so8t.policy);
        }
        return true;
    } catch (const std::exception & e) {
        LOG_ERR("error: %s\n", e.what());
        return false;
    }
}
