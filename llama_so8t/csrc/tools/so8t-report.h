#pragma once

#include <string>

class common_json;
class so8t_guard;
struct so8t_params;

// Verdicts in the command line tools: two lines per turn for a person, one JSON object per turn for programs.

// prints a token of llama-completion, under enforce only when it may be delivered
void so8t_print(const so8t_guard & guard, const std::string & text);

// at the end of a turn of llama-completion: prints what so8t_print() withheld and may be delivered, or the
// refusal, reports, and begins anew
void so8t_end_turn(const so8t_params & params, so8t_guard & guard);

// prints the verdict of each part to stderr, one line each, and appends all to params.json_file; nothing for a
// null verdict
//   so8t prompt: safety unsafe 0.97, authority handle 0.81 -> refuse
void so8t_report(const so8t_params & params, const common_json & verdict);
