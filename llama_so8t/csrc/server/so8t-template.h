#pragma once

#include "chat.h"
#include "common.h"

#include <string>
#include <vector>

struct server_chat_params;

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

    // tokens without white space and the begin-of-sequence token at their beginning
    llama_tokens stripped(const llama_token * begin, const llama_token * end) const;

    const llama_vocab * vocab;

    // [user] TEXT [end] [generation], and [assistant] TEXT [end]; end is LLAMA_TOKEN_NULL where turns end with a text,
    // which a client can write as well
    llama_tokens user, assistant, generation;
    llama_token end = LLAMA_TOKEN_NULL;
    llama_tokens preamble; // what the template itself says before the first turn
    llama_tokens system;   // [system] TEXT [end]; none where a text of the system is a part of a turn

    size_t n_around = 0; // tokens of a conversation of one turn besides its text

  private:
    void find_system();

    // the rendering of one turn, cut where its text stands; a rendering takes milliseconds, so it is kept
    std::string before_text, after_text;

    const server_chat_params & chat;
};
