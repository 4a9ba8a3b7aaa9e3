#include "so8t-report.h"

#include "arg.h"
#include "common.h"
#include "json.h"
#include "log.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>

std::vector<common_arg> so8t_args() {
#ifndef _WIN32 // there, threads are gone by the time exit handlers run
    // llama.cpp's log is written by a thread: a tool that refuses a file must not exit before its reason is out
    static const int at_exit = std::atexit([]() { common_log_flush(common_log_main()); });
    GGML_UNUSED(at_exit);
#endif
    return {
        common_arg(
            {"--so8t-json"}, "FILE",
            "SO8T: write the verdicts of every turn to FILE, one JSON object per line",
            [](common_params & params, const std::string & value) {
                // truncated here, so that a path that cannot be written is an error before the model loads
                if (!std::ofstream(value, std::ios::trunc)) {
                    throw std::invalid_argument(string_format("cannot write '%s': %s", value.c_str(), strerror(errno)));
                }
                params.so8t.json_file = value;
            }
        ).set_examples({LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_CLI}).set_env("LLAMA_ARG_SO8T_JSON"),
    };
}

static std::string so8t_verdict_line(const char * what, const common_json & part) {
    std::string line = string_format("so8t %s:", what);

    const char * separator = " ";
    for (const auto & [name, head] : part.at("heads").items()) {
        const std::string label = head.at("label").get<std::string>();
        const auto      & p     = head.at("probabilities").at(label);
        line += separator + name + " " + label + " ";
        line += p.is_null() ? "NaN" : string_format("%.2f", p.get<double>());
        if (head.contains("triggered") && !head.at("triggered").is_null()) {
            const auto & triggered = head.at("triggered");
            line += string_format(" (%s at token %d)", triggered.at("label").get<std::string>().c_str(), triggered.at("position").get<int>());
        }
        separator = ", ";
    }
    return line + " -> " + part.at("action").get<std::string>();
}

void so8t_report(const so8t_params & params, const common_json & verdict) {
    if (verdict.is_null()) {
        return;
    }
    fflush(stdout);
    fprintf(stderr, "\n%s\n%s\n",
        so8t_verdict_line("prompt", verdict.at("prompt")).c_str(),
        so8t_verdict_line("answer", verdict.at("answer")).c_str());
    if (params.json_file.empty()) {
        return;
    }
    std::ofstream file(params.json_file, std::ios::app);
    file << verdict.dump() << std::endl;
    if (!file) {
        LOG_ERR("so8t: cannot write '%s': %s\n", params.json_file.c_str(), strerror(errno));
    }
}

common_json so8t_attach(common_json response, const common_json & verdict) {
    if (verdict.is_null()) {
        return response;
    }
    if (response.is_object()) {
        response["so8t"] = verdict;
    } else if (response.is_array() && !response.empty() && response.back().is_object()) {
        response.back()["so8t"] = verdict;
    }
    return response;
}
