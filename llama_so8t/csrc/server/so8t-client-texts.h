#pragma once

#include "chat.h"

#include <string>
#include <vector>

class common_json;

// What a client has written, word for word. The prompt that a model reads is made of it, with the words of a template
// around it, so only these texts tell whether somebody typed something.
struct so8t_client_text {
    std::string role; // empty: of a raw prompt
    std::string text;
};

// of each message, in their order: its reasoning, and its content or each text part of that
std::vector<so8t_client_text> so8t_client_texts(const std::vector<common_chat_msg> & messages);

// of the body of a raw endpoint: the texts of its prompts, or those around the gap that /infill fills
std::vector<so8t_client_text> so8t_client_texts(const common_json & body);

// A refusal that a client gives back, as a field of the assistant's message or as a part of its content, becomes text of this
// message: llama.cpp drops the one and refuses the other. body: of a chat
void so8t_refusals_as_text(common_json & body);
