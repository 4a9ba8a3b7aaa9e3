#pragma once

#include "so8t-policy.h"
#include "so8t-verdict.h"

#include "chat.h"
#include "common.h"
#include "json.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

struct server_chat_params;

// Where a prompt is judged is not the choice of a client: what is read of it besides its last token.
//
// A prompt is cut into the texts that a client can have written. Each is read at a place that depends on nothing that
// stands behind it (so8t_reading_kind).

struct so8t_reading {
    so8t_reading_kind kind;
    int32_t turn;    // index of the message; in a raw prompt, of the text that an end-of-turn token closes
    std::string key; // equal for readings of the same texts, whatever stands behind them
    bool noted;      // of a turn that the guard has refused already: its own words follow

    // tokens to evaluate, made only where the key is not remembered: the last one of the first is read, and all of the second
    std::function<std::pair<llama_tokens, llama_tokens>()> tokens;
};

using so8t_read = std::function<void(const so8t_reading & reading)>;

// Renders conversations as the operator has set it up: the template of the model, its options and its tokens.
class so8t_template {
  public:
    so8t_template(const llama_vocab * vocab, const server_chat_params & chat);

    // messages up to where the next answer begins. What a request says about the end of its prompt does not count.
    // throws std::exception where the template refuses them
    std::string render(common_chat_templates_inputs inputs, std::vector<common_chat_msg> messages) const;

    // the same as tokens; control tokens in the texts are text
    llama_tokens literal_conversation(const std::vector<common_chat_msg> & messages) const;

    // a text as the only turn of a conversation
    std::string render_alone(const std::string & text) const;
    bool is_alone(const std::string & rendered, const std::string & text) const; // it is what render_alone() makes
    llama_tokens alone(const std::string & text) const;                          // control tokens in it are text

    llama_tokens tokens(const std::string & rendered) const;
    llama_tokens literal(const std::string & text) const; // no control tokens
    bool has_control(const std::string & text) const;

    const llama_vocab * vocab;

    // [user] TEXT [end] [generation], and [assistant] TEXT [end]; end is LLAMA_TOKEN_NULL where turns end with a text,
    // which a client can write as well
    llama_tokens user, assistant, generation;
    llama_token end = LLAMA_TOKEN_NULL;
    llama_tokens preamble; // what the template itself says before the first turn

  private:
    // the rendering of one turn, cut where its text stands; a rendering takes milliseconds, so it is kept
    std::string before_text, after_text;

    const server_chat_params & chat;
};

// what the template is given besides messages: the operator's options, and those of a request
common_chat_templates_inputs so8t_template_inputs(const server_chat_params & chat, const common_json & data);

// Has all of a chat request read that its last token does not read: data is the request after the template was applied,
// prompt its tokens. Returns the keys of the reading at the last token, first that of the conversation.
// throws std::exception where the template refuses a turn
std::vector<std::string> so8t_read_chat(const so8t_template & tmpl, const server_chat_params & chat,
    const so8t_policy & policy, const common_json & data, const llama_tokens & prompt, const so8t_read & read);

// The same for a prompt that its client has made.
std::vector<std::string> so8t_read_raw(
    const so8t_template & tmpl, const so8t_policy & policy, const llama_tokens & prompt, const so8t_read & read);

// the text of the last turn of a user in a prompt; nothing: it has none that the words of the template tell
std::optional<std::string> so8t_last_question(const so8t_template & tmpl, const llama_tokens & prompt);

// key of an answer to a prompt, generated here or given back as a message
std::string so8t_answer_key(const std::string & prompt_key, const std::string & answer);
