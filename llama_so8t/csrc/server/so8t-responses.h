#pragma once

#include "so8t-answer.h"

#include "json.h"

#include <map>
#include <string>

// Answers of /v1/responses, as OpenAI writes them.

// an enforced answer: a message with its text or its refusal, and why it ends
void so8t_response_enforce(common_json & response, const so8t_answer & answer);

// The same in a stream. events: before which the last one comes; last: the event with the whole response.
void so8t_response_enforce(common_json & events, common_json & last, const so8t_answer & answer);

// an answer that was cut at max_output_tokens: what llama.cpp says is complete
void so8t_response_cut(common_json & response);

// One answer on its way: fields that the format always has, most of which repeat what was asked, and the numbers of events.
class so8t_response_events {
  public:
    // body: the request as its client sent it; what is not of the type of a field counts for nothing,
    // nor does a body that is nested too deep to be repeated
    void begin(const std::string & body, const std::string & model);

    common_json fill_response(common_json response) const; // the whole object
    common_json fill(const common_json & events);          // of a stream, in their order

    int next_number() { return n_events++; }

  private:
    void push(common_json & events, const common_json & data);
    void push_done(common_json & events, const common_json & item);

    common_json base;                  // fields of every response
    std::map<std::string, int> places; // id of an item -> output_index
    int n_events = 0;
};
