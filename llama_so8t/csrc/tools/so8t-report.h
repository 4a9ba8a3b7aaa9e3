#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <utility>

class common_json;
class so8t_guard;
struct so8t_params;
struct so8t_verdict;

// Verdicts in the command line tools: two lines per turn for a person, one JSON object per turn for programs.

// the text of llama-completion, which has one answer at a time
class so8t_output {
  public:
    // prints a token, under enforce only when it may be delivered
    void print(const so8t_guard & guard, const std::string & text);

    // at the end of a turn: prints what print() withheld and may be delivered, or the refusal, reports, and begins anew
    void end_turn(const so8t_params & params, so8t_guard & guard);

  private:
    void print_until(int32_t n_tokens);

    std::deque<std::pair<int32_t, std::string>> withheld; // tokens of the answer, with their positions
};

// prints the verdict of each part to stderr, one line each, and appends all to params.json_file
//   so8t prompt: safety unsafe 0.97, authority handle 0.81 -> refuse
void so8t_report(const so8t_params & params, const so8t_verdict & verdict);

// the same of the object "so8t" that llama-cli gets from a server, null: nothing
void so8t_report(const so8t_params & params, const common_json & answer);
