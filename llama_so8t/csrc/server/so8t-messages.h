#pragma once

#include "so8t-answer.h"

#include "json.h"

#include <map>

// Answers of /v1/messages, as Anthropic writes them.

// an enforced answer: its text as last block, and why it ends
void so8t_message_enforce(common_json & message, const so8t_answer & answer);

// The same in a stream. events: before which the message_delta comes; delta: its data.
void so8t_message_enforce(common_json & events, common_json & delta, const so8t_answer & answer);

// the fields that an object always has
void so8t_message_fill(common_json & message);

// The events of one stream, in their order: what they lack is added, and a content block ends before the next one begins.
class so8t_message_events {
  public:
    common_json fill(const common_json & events);

  private:
    void begin_block(common_json & events, common_json & data);
    void end_block(common_json & events);

    std::map<int, int> places; // index of a block as llama.cpp gives it -> in the stream
    int n_blocks     = 0;
    int open         = -1; // block that has begun and not ended
    bool is_thinking = false;
    common_json usage; // of message_start
};
