#pragma once

#include "so8t-client-texts.h"
#include "so8t-policy.h"
#include "so8t-template.h"
#include "so8t-verdict.h"

#include "common.h"
#include "json.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

// Where a prompt is judged is not the choice of a client: what is read of it besides its last token.
//
// A prompt is cut into the texts that a client can have written. Each is read at a place that depends on nothing that
// stands behind it (so8t_reading_kind).

struct so8t_reading {
    so8t_reading_kind kind;
    int32_t turn;    // index of the message; in a raw prompt, of the text that an end-of-turn token closes
    std::string key; // equal for readings of the same texts, whatever stands behind them
    bool noted;      // of a turn that the guard has refused already

    // tokens to evaluate, made only where the key is not remembered: the last one of the first is read, and all of the second
    std::function<std::pair<llama_tokens, llama_tokens>()> tokens;
};

// Who reads the texts of one request, and remembers.
class so8t_reader {
  public:
    virtual ~so8t_reader() = default;

    virtual void read(const so8t_reading & reading)   = 0;
    virtual bool knows(const std::string & key)       = 0; // it is remembered
    virtual bool has_refused(const std::string & key) = 0; // the prompt of this key
};

// what the template is given besides messages: the operator's options, and those of a request
common_chat_templates_inputs so8t_template_inputs(const server_chat_params & chat, const common_json & data);

// Has all of a chat request read that its last token does not read: data is the request after the template was applied,
// prompt its tokens. Returns the keys of the reading at the last token, first that of the conversation.
// throws std::exception where the template refuses a turn
std::vector<std::string> so8t_read_chat(const so8t_template & tmpl, const server_chat_params & chat,
    const so8t_policy & policy, const common_json & data, const llama_tokens & prompt, so8t_reader & reader);

// The same for a prompt that its client has made.
std::vector<std::string> so8t_read_raw(
    const so8t_template & tmpl, const so8t_policy & policy, const llama_tokens & prompt, so8t_reader & reader);

// the turns in a prompt that its client has made, by the words of the template; none if there are no other texts
std::vector<so8t_client_text> so8t_turn_texts(const so8t_template & tmpl, const llama_tokens & prompt);

// What heads that read texts read of a prompt, as indices of its tokens: the text of the last turn of a user, and of other
// turns beside it; what stands outside of turns there, or all of a prompt without turns, in windows. None is empty.
std::vector<so8t_text_span> so8t_user_texts(const so8t_template & tmpl, const llama_tokens & prompt);

// the text of the last turn of a user in a prompt; nothing: it has none that the words of the template tell
std::optional<std::string> so8t_last_question(const so8t_template & tmpl, const llama_tokens & prompt);

// key of an answer to a prompt, generated here or given back as a message
std::string so8t_answer_key(const std::string & prompt_key, const std::string & answer);
