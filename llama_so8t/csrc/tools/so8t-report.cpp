#include "so8t-report.h"

#include "so8t-args.h"
#include "so8t-guard.h"

#include "common.h"
#include "json.h"
#include "log.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <utility>

// tokens of the answer that are not yet printed, with their positions; llama-completion has one answer at a time
static std::deque<std::pair<int32_t, std::string>> so8t_withheld;

static void so8t_print_until(int32_t n_tokens) {
    while (!so8t_withheld.empty() && so8t_withheld.front().first < n_tokens) {
        LOG("%s", so8t_withheld.front().second.c_str());
        so8t_withheld.pop_front();
    }
}

void so8t_print(const so8t_guard & guard, const std::string & text) {
    so8t_withheld.emplace_back(guard.n_generated() - 1, text);
    so8t_print_until(guard.n_sendable(false));
}

void so8t_end_turn(const so8t_params & params, so8t_guard & guard) {
    so8t_print_until(guard.n_sendable(true));
    so8t_withheld.clear();
    if (!guard.text().empty()) {
        LOG("%s%s\n", guard.n_generated() > 1 ? "\n\n" : "", guard.text().c_str());
    }
    so8t_report(params, guard.verdict());
    guard.begin();
}

static std::string so8t_verdict_line(const std::string & what, const common_json & part) {
    std::string line = string_format("so8t %s:", what.c_str());

    const char * separator = " ";
    for (const auto & [name, head] : part.at("heads").items()) {
        const std::string label  = head.at("label").get<std::string>();
        const auto & probs       = head.at("probabilities");
        line                    += separator + name + " " + label;
        if (probs.contains(label)) {
            line += string_format(" %.2f", probs.at(label).get<double>());
        }
        if (head.contains("triggered") && !head.at("triggered").is_null()) {
            const auto & triggered = head.at("triggered");
            line += string_format(" (%s at token %d)", triggered.at("label").get<std::string>().c_str(),
                triggered.at("position").get<int>());
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
    fprintf(stderr, "\n");
    for (const char * part : {"prompt", "think", "answer"}) {
        if (verdict.contains(part)) {
            fprintf(stderr, "%s\n", so8t_verdict_line(part, verdict.at(part)).c_str());
        }
    }
    const std::string enforced = verdict.at("enforced").get<std::string>();
    if (enforced != "none") {
        fprintf(stderr, "so8t enforced: %s\n", enforced.c_str());
    }
    if (params.json_file.empty()) {
        return;
    }
    std::ofstream file(params.json_file, std::ios::app);
    file << verdict.dump_safe() << std::endl;
    if (!file) {
        LOG_ERR("so8t: cannot write '%s': %s\n", params.json_file.c_str(), strerror(errno));
    }
}
