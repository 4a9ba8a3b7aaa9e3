#pragma once

#include "so8t-messages.h"
#include "so8t-responses.h"

#include "json.h"
#include "server-task.h"

#include <map>
#include <set>
#include <string>

// What a client gets for one request: results of llama.cpp, each with its verdict (so8t-answer), in the whole format of the
// endpoint. Typed clients refuse an answer that lacks a field, a harmless one too. In the thread of the request.
class so8t_api_results {
  public:
    // request: as llama.cpp reads it; body: as its client sent it
    // throws std::invalid_argument: several choices of /v1/responses, which has one
    void begin(
        task_response_type type, const common_json & request, const std::string & body, const std::string & model);

    // The first of several results gets the usage of all of them. Choices that share a prompt have it once.
    void sum_usage(common_json & results);

    // an answer that is not streamed
    common_json whole(common_json result);

    // The next events of a stream; null as it is. The usage of all choices comes once, in a chunk behind the last one.
    common_json events(const common_json & result, bool is_last);

    // an error in the middle of a stream
    common_json error(const common_json & error);

  private:
    void add_usage(const common_json & usage, int index);
    void fill_choice(common_json & choice);
    void end_choice(common_json & chunks, const common_json & usage, bool is_last);
    common_json chunks(const common_json & result, bool is_last);

    task_response_type type = {};
    int n_per_prompt        = 1; // choices
    bool include_usage      = false;
    bool is_several         = false; // a choice has ended before the last one
    common_json usage;               // so far, of all choices
    common_json verdict;             // of the first choice
    std::set<int> prompts;           // whose tokens are in the usage
    std::map<int, int> n_chars;      // sent of the text of each choice, where probabilities are told

    so8t_response_events responses;
    so8t_message_events messages;
};
