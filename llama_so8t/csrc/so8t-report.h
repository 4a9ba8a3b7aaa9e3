#pragma once

#include <string>
#include <vector>

class common_json;
struct common_arg;

// Verdicts in the command line tools: two lines per turn for a person, one JSON object per turn for programs.

struct so8t_params {
    std::string json_file; // --so8t-json, one line per turn; empty: none
};

// the command line options of so8t
std::vector<common_arg> so8t_args();

// at the end of a turn: prints the verdict of the prompt and of the answer to stderr, one line each, and
// appends it to params.json_file; nothing for a null verdict
//   so8t prompt: safety unsafe 0.97, authority handle 0.81 -> refuse
void so8t_report(const so8t_params & params, const common_json & verdict);

// adds {"so8t": verdict} to a response, or to the last of several; no change for a null verdict
common_json so8t_attach(common_json response, const common_json & verdict);
