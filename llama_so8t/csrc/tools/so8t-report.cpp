#include "so8t-report.h"

#include "so8t-args.h"
#include "so8t-guard.h"
#include "so8t-verdict.h"

#include "common.h"
#include "json.h"
#include "log.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

void so8t_output::print_until(int32_t n_tokens) {
    while (!withheld.empty() && withheld.front().first < n_tokens) {
        LOG("%s", withheld.front().second.c_str());
        withheld.pop_front();
    }
}

void so8t_output::print(const so8t_guard & guard, const std::string & text) {
    withheld.emplace_back(guard.n_generated() - 1, text);
    print_until(guard.n_sendable(false));
}

void so8t_output::end_turn(const so8t_params & params, so8t_guard & guard) {
    print_until(guard.n_sendable(true));
    withheld.clear();
    if (!guard.text().empty()) {
        LOG("%s%s\n", guard.n_generated() > 1 ? "\n\n" : "", guard.text().c_str());
    }
    if (const auto verdict = guard.verdict()) {
        so8t_report(params, *verdict);
    }
    guard.begin();
}

// what: the part, or the reading of a turn
static std::string so8t_part_line(
    const so8t_verdict & verdict, const std::string & what, const so8t_part_verdict & part, bool is_prompt) {
    std::string line = "so8t " + what + ":";

    const char * separator = " ";
    for (size_t i = 0; i < part.heads.size(); ++i) {
        const auto & head = part.heads[i];
        if (head.probs.empty()) {
            continue;
        }
        line += separator + verdict.head_name(i) + " " + verdict.label_name(i, head.label);
        if (head.label >= 0) {
            line += string_format(" %.2f", so8t_short(head.probs[head.label]));
        }
        if (head.triggered_label >= 0 && !is_prompt) {
            line += string_format(
                " (%s at token %d)", verdict.label_name(i, head.triggered_label).c_str(), head.triggered_position);
        }
        separator = ", ";
    }
    return line + " -> " + llama_so8t_action_name(part.action);
}

static void so8t_print_lines(const so8t_verdict & verdict) {
    fflush(stdout);
    fprintf(stderr, "\n");
    for (const so8t_turn_verdict & turn : verdict.turns) {
        const std::string what = string_format(
            "turn %d %s%s", turn.turn, so8t_reading_kind_name(turn.kind), turn.noted ? " (noted)" : "");
        fprintf(stderr, "%s\n", so8t_part_line(verdict, what, turn.part, turn.kind != SO8T_READING_GIVEN).c_str());
    }
    for (const so8t_part part : {SO8T_PART_PROMPT, SO8T_PART_THINK, SO8T_PART_ANSWER}) {
        if (part != SO8T_PART_THINK || verdict.parts[part].n_positions > 0) {
            fprintf(stderr, "%s\n",
                so8t_part_line(verdict, so8t_part_name(part), verdict.parts[part], part == SO8T_PART_PROMPT).c_str());
        }
    }
    if (verdict.enforced != SO8T_ENFORCED_NONE) {
        fprintf(stderr, "so8t enforced: %s\n", so8t_enforced_name(verdict.enforced));
    }
}

static void so8t_append(const std::string & path, const common_json & answer) {
    if (path.empty()) {
        return;
    }
    std::ofstream file(path, std::ios::app);
    file << answer.dump_safe() << std::endl;
    if (!file) {
        LOG_ERR("so8t: cannot write '%s': %s\n", path.c_str(), strerror(errno));
    }
}

void so8t_report(const so8t_params & params, const so8t_verdict & verdict) {
    so8t_print_lines(verdict);
    so8t_append(params.json_file, verdict.to_json());
}

void so8t_report(const so8t_params & params, const common_json & answer) {
    if (!answer.is_null()) {
        so8t_print_lines(so8t_verdict_from_json(answer));
        so8t_append(params.json_file, answer);
    }
}
