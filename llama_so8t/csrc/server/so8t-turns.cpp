#include "so8t-turns.h"

#include "server-common.h"

#include "hash/hash.h"

#include <algorithm>
#include <stdexcept>

//
// the template
//

static const char * const SO8T_PLACE = "So8tPlaceOfTheText"; // stands for a text in a rendering

static common_chat_msg so8t_user_message(const std::string & text) {
    common_chat_msg message;
    message.role    = "user";
    message.content = text;
    return message;
}

static bool so8t_is_space(const llama_vocab * vocab, llama_token token) {
    return token == llama_vocab_bos(vocab) || string_strip(common_token_to_piece(vocab, token, true)).empty();
}

// tokens without white space and the begin-of-sequence token at their beginning
static llama_tokens so8t_stripped(const llama_vocab * vocab, const llama_token * begin, const llama_token * end) {
    begin = std::find_if(begin, end, [&](llama_token token) { return !so8t_is_space(vocab, token); });
    return llama_tokens(begin, end);
}

so8t_template::so8t_template(const llama_vocab * vocab, const server_chat_params & chat) :
    vocab(vocab),
    chat(chat) {
    const std::string rendered = render_alone(SO8T_PLACE);
    const size_t place         = rendered.rfind(SO8T_PLACE);
    if (place == std::string::npos) {
        throw std::runtime_error("so8t: the chat template drops the text of a user, so it cannot be judged");
    }
    before_text = rendered.substr(0, place);
    after_text  = rendered.substr(place + std::string(SO8T_PLACE).size());

    const llama_tokens before = common_tokenize(vocab, before_text, true, true);
    const llama_tokens after  = common_tokenize(vocab, after_text, false, true);
    size_t i_end              = 0;
    while (i_end < after.size() && !llama_vocab_is_eog(vocab, after[i_end])) {
        i_end++;
    }
    if (i_end == after.size()) {
        return;
    }
    size_t i_user = before.size();
    while (i_user > 0 && !llama_vocab_is_eog(vocab, before[i_user - 1])) {
        i_user--;
    }
    end        = after[i_end];
    preamble   = llama_tokens(before.begin(), before.begin() + i_user);
    generation = llama_tokens(after.begin() + i_end + 1, after.end());
    assistant  = so8t_stripped(vocab, generation.data(), generation.data() + generation.size());
    user       = so8t_stripped(vocab, before.data() + i_user, before.data() + before.size());
}

std::string so8t_template::render(common_chat_templates_inputs inputs, std::vector<common_chat_msg> messages) const {
    inputs.messages               = std::move(messages);
    inputs.use_jinja              = chat.use_jinja;
    inputs.add_generation_prompt  = true;
    inputs.continue_final_message = COMMON_CHAT_CONTINUATION_NONE;
    inputs.reasoning_format       = chat.reasoning_format;
    inputs.force_pure_content     = chat.force_pure_content;
    return common_chat_templates_apply(chat.tmpls.get(), inputs).prompt;
}

std::string so8t_template::render_alone(const std::string & text) const {
    common_chat_templates_inputs inputs;
    inputs.enable_thinking      = chat.enable_thinking;
    inputs.chat_template_kwargs = chat.chat_template_kwargs;
    return render(inputs, {so8t_user_message(text)});
}

bool so8t_template::is_alone(const std::string & rendered, const std::string & text) const {
    // the second: a template that trims texts, or says the day
    return rendered == before_text + text + after_text || rendered == render_alone(text);
}

llama_tokens so8t_template::alone(const std::string & text) const {
    return literal_conversation({so8t_user_message(text)});
}

llama_tokens so8t_template::literal_conversation(const std::vector<common_chat_msg> & messages) const {
    common_chat_templates_inputs inputs;
    inputs.enable_thinking      = chat.enable_thinking;
    inputs.chat_template_kwargs = chat.chat_template_kwargs;

    bool any_control = false;
    auto places      = messages; // with a mark instead of each text
    for (size_t i = 0; i < messages.size(); ++i) {
        const std::string text  = messages[i].render_content();
        any_control            |= has_control(text);
        places[i].content       = SO8T_PLACE + std::to_string(i) + ".";
        places[i].content_parts.clear();
    }
    if (!any_control) {
        return tokens(render(inputs, messages));
    }
    const std::string rendered = render(inputs, places);
    llama_tokens result;
    size_t begin = 0;
    for (size_t i = 0; i < messages.size(); ++i) {
        const size_t place = rendered.find(places[i].content, begin);
        if (place == std::string::npos) {
            throw std::invalid_argument("so8t: the chat template drops a text or changes the order of the messages");
        }
        const auto before = common_tokenize(vocab, rendered.substr(begin, place - begin), begin == 0, true);
        const auto text   = literal(messages[i].render_content());
        result.insert(result.end(), before.begin(), before.end());
        result.insert(result.end(), text.begin(), text.end());
        begin = place + places[i].content.size();
    }
    const auto after = common_tokenize(vocab, rendered.substr(begin), false, true);
    result.insert(result.end(), after.begin(), after.end());
    return result;
}

llama_tokens so8t_template::tokens(const std::string & rendered) const {
    return common_tokenize(vocab, rendered, true, true); // as llama-server does
}

llama_tokens so8t_template::literal(const std::string & text) const {
    return common_tokenize(vocab, text, false, false);
}

bool so8t_template::has_control(const std::string & text) const {
    return literal(text) != common_tokenize(vocab, text, false, true);
}

//
// keys
//

static std::string so8t_key(const std::string & before, const std::string & data) {
    const std::string both = before + '\n' + data;
    return hash_sha256_hex(both.data(), both.size());
}

static std::string so8t_key(const llama_tokens & tokens) {
    return hash_sha256_hex((const char *) tokens.data(), tokens.size() * sizeof(llama_token));
}

std::string so8t_answer_key(const std::string & prompt_key, const std::string & answer) {
    const std::string close   = "</think>"; // most clients give back what stands behind it
    const size_t place        = answer.rfind(close);
    const std::string visible = place == std::string::npos ? answer : answer.substr(place + close.size());
    return so8t_key(prompt_key, "answer " + string_strip(visible));
}

//
// chat
//

// what a message says, whatever its parts are called
static std::string so8t_text_of(const common_chat_msg & message) {
    std::string text = message.render_content("\n");
    if (!message.reasoning_content.empty()) {
        text = message.reasoning_content + "\n" + text;
    }
    for (const auto & call : message.tool_calls) {
        text += "\n" + call.name + " " + call.arguments;
    }
    return text;
}

// the options of a request that its rendering depends on before its end
common_chat_templates_inputs so8t_template_inputs(const server_chat_params & chat, const json & data) {
    common_chat_templates_inputs inputs;
    inputs.enable_thinking      = chat.enable_thinking;
    inputs.chat_template_kwargs = chat.chat_template_kwargs;
    if (data.contains("tools")) {
        inputs.tools       = common_chat_tools_parse_oaicompat(data.at("tools"));
        inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(
            json_value(data, "tool_choice", std::string("auto")));
    }
    const json kwargs = json_value(data, "chat_template_kwargs", json::object());
    for (const auto & [key, value] : kwargs.items()) {
        inputs.chat_template_kwargs[key] = value.dump();
    }
    const auto thinking = inputs.chat_template_kwargs.find("enable_thinking");
    if (thinking != inputs.chat_template_kwargs.end()) {
        inputs.enable_thinking = thinking->second == "true";
    }
    return inputs;
}

static bool so8t_erase(std::string & text, const std::string & part) {
    const size_t place = part.empty() ? std::string::npos : text.rfind(part);
    if (place == std::string::npos) {
        return false;
    }
    text.erase(place, part.size());
    return true;
}

// without the tags, also those that come to be where one is taken out
static std::string so8t_without_think_tags(const std::string & text) {
    std::string result;
    for (const char c : text) {
        result += c;
        for (const char * tag : {"<think>", "</think>"}) {
            if (c == '>' && string_ends_with(result, tag)) {
                result.resize(result.size() - std::string(tag).size());
                break;
            }
        }
    }
    return result;
}

static bool so8t_is_blank(const std::string & text) {
    return string_strip(text).empty();
}

// whether a text of the assistant holds the guard's own words, which are taken out: the rest is to be judged
static bool so8t_take_own(const so8t_policy & policy, std::string & text) {
    const bool is_own = so8t_erase(text, policy.refusal) || so8t_erase(text, policy.escalation);
    text              = so8t_without_think_tags(text); // whatever a client calls a thought
    return is_own;
}

static bool so8t_is_turn(const common_chat_msg & message) {
    return message.role != "system" && message.role != "developer" && message.role != "assistant";
}

// whether the guard's own words follow message i, and another turn follows them: an answer that goes on behind these
// words is one to message i
static bool so8t_was_refused(const so8t_policy & policy, const std::vector<common_chat_msg> & messages, size_t i) {
    std::string next = i + 1 < messages.size() && messages[i + 1].role == "assistant" ? so8t_text_of(messages[i + 1]) :
                                                                                        "";
    return so8t_take_own(policy, next) && std::any_of(messages.begin() + i + 2, messages.end(), so8t_is_turn);
}

// Goes through the messages of a request once, and has each text read where its role says.
class so8t_chat_walk {
  public:
    so8t_chat_walk(const so8t_template & tmpl, const server_chat_params & chat, const so8t_policy & policy,
        const json & data, const llama_tokens & prompt, const so8t_read & read) :
        tmpl(tmpl),
        policy(policy),
        read(read),
        messages(common_chat_msgs_parse_oaicompat(data.at("messages"))),
        inputs(so8t_template_inputs(chat, data)),
        rendered(data.at("prompt").get<std::string>()),
        is_closed(json_value(data, "add_generation_prompt", true) && !data.contains("continue_final_message")),
        prompt_keys({so8t_key(prompt)}) {
        // all that a template is given besides the messages
        for (const char * name : {"tools", "tool_choice", "parallel_tool_calls", "response_format", "json_schema",
                 "grammar", "chat_template_kwargs", "reasoning_effort", "reasoning_format"}) {
            const std::string option  = json_value(data, name, json()).dump_safe();
            key                       = so8t_key(key, option);
            has_control              |= tmpl.has_control(option);
        }
    }

    // returns the keys of the reading at the last token of the prompt
    std::vector<std::string> walk(const llama_tokens & prompt) {
        for (size_t i = 0; i < messages.size(); ++i) {
            const std::string all  = messages[i].to_json_oaicompat().dump_safe();
            key_before             = key;
            key                    = so8t_key(key_before, all);
            has_media             |= messages[i].contains_media();
            has_control           |= tmpl.has_control(all);
            if (so8t_is_turn(messages[i])) {
                read_turn(i);
            } else if (messages[i].role == "assistant") {
                read_given(i);
            } else {
                read_system(i);
            }
        }
        std::for_each(later.begin(), later.end(), read);
        if (has_control) { // a text of a client that opens or closes turns
            so8t_read_raw(tmpl, policy, prompt, read);
        }
        return prompt_keys;
    }

  private:
    std::string render(size_t n) const {
        return tmpl.render(inputs, std::vector<common_chat_msg>(messages.begin(), messages.begin() + n));
    }

    void read_context(size_t i, bool noted) const {
        read({SO8T_READING_CONTEXT, (int32_t) i, key, noted,
            [&]() { return std::make_pair(tmpl.tokens(render(i + 1)), llama_tokens()); }});
    }

    void read_alone(so8t_reading_kind kind, size_t i, bool noted, const std::string & text) {
        later.push_back({kind, (int32_t) i, so8t_key("alone", text), noted,
            [this, text]() { return std::make_pair(tmpl.alone(text), llama_tokens()); }});
    }

    // a turn of a user, or the result of a tool
    void read_turn(size_t i) {
        const std::string text = so8t_text_of(messages[i]);
        const bool noted   = policy.refused_turns == SO8T_REFUSED_TURNS_NOTE && so8t_was_refused(policy, messages, i);
        const bool is_last = i + 1 == messages.size() && is_closed;
        if (is_last) {
            prompt_keys = {key}; // the slot reads it
        } else if (policy.turns != SO8T_TURNS_ALONE && !has_media) {
            read_context(i, noted);
        }
        // the slot takes control tokens in a text as such
        const bool is_only = is_last && i == 0 && !tmpl.has_control(text) && tmpl.is_alone(rendered, text);
        if (is_only) {
            prompt_keys.push_back(so8t_key("alone", text));
        } else if (policy.turns != SO8T_TURNS_CONTEXT && !so8t_is_blank(text)) {
            read_alone(SO8T_READING_ALONE, i, noted, text);
        }
    }

    // text of the assistant, which a client supplies
    void read_given(size_t i) {
        std::string text = so8t_text_of(messages[i]);
        so8t_take_own(policy, text);
        if (so8t_is_blank(text)) {
            return;
        }
        if (i == 0 || has_media) { // nothing before it, or something that only a slot can evaluate
            read_alone(SO8T_READING_TEXT, i, false, text);
        } else {
            read({SO8T_READING_GIVEN, (int32_t) i, so8t_answer_key(key_before, text), false,
                [&]() { return std::make_pair(tmpl.tokens(render(i)), tmpl.literal(text)); }});
        }
    }

    // a text of the system; the turns behind it are read with it
    void read_system(size_t i) {
        const std::string text = so8t_text_of(messages[i]);
        if (so8t_is_blank(text) || std::any_of(messages.begin() + i + 1, messages.end(), so8t_is_turn)) {
            return;
        }
        if (has_media) {
            read_alone(SO8T_READING_TEXT, i, false, text);
        } else if (render(i + 1) != rendered) {
            read_context(i, false);
        }
    }

    const so8t_template & tmpl;
    const so8t_policy & policy;
    const so8t_read & read;

    const std::vector<common_chat_msg> messages;
    const common_chat_templates_inputs inputs;
    const std::string rendered; // the prompt
    const bool is_closed;       // it ends where an answer to the last message begins

    std::string key;        // of the messages up to the current one
    std::string key_before; // and without it
    std::vector<std::string> prompt_keys;
    std::vector<so8t_reading> later; // each text alone: the KV cache keeps the conversation until then
    bool has_media   = false;
    bool has_control = false;
};

std::vector<std::string> so8t_read_chat(const so8t_template & tmpl, const server_chat_params & chat,
    const so8t_policy & policy, const json & data, const llama_tokens & prompt, const so8t_read & read) {
    return so8t_chat_walk(tmpl, chat, policy, data, prompt, read).walk(prompt);
}

//
// raw prompts
//

static bool so8t_starts_with(const llama_tokens & tokens, const llama_tokens & start) {
    return !start.empty() && tokens.size() >= start.size() && std::equal(start.begin(), start.end(), tokens.begin());
}

// what stands up to an end-of-turn token, or up to the end
struct so8t_segment {
    enum { USER, ASSISTANT, OTHER } role;
    size_t n_before; // tokens of the prompt before the text
    size_t n_end;    // and up to its end
    std::string text;
};

static std::vector<so8t_segment> so8t_segments(const so8t_template & tmpl, const llama_tokens & prompt) {
    std::vector<so8t_segment> result;
    const auto add = [&](size_t begin, size_t end) {
        const llama_tokens tokens = so8t_stripped(tmpl.vocab, prompt.data() + begin, prompt.data() + end);
        so8t_segment segment      = {so8t_segment::OTHER, end - tokens.size(), end, ""};
        if (so8t_starts_with(tokens, tmpl.user)) {
            segment.role      = so8t_segment::USER;
            segment.n_before += tmpl.user.size();
        } else if (so8t_starts_with(tokens, tmpl.assistant)) {
            segment.role      = so8t_segment::ASSISTANT;
            segment.n_before += tmpl.assistant.size();
        }
        const llama_tokens text(prompt.begin() + segment.n_before, prompt.begin() + end);
        segment.text = common_detokenize(tmpl.vocab, text, false);
        result.push_back(std::move(segment));
    };
    size_t begin = so8t_starts_with(prompt, tmpl.preamble) ? tmpl.preamble.size() : 0;
    for (size_t i = begin; i < prompt.size() && tmpl.end != LLAMA_TOKEN_NULL; ++i) {
        if (llama_vocab_is_eog(tmpl.vocab, prompt[i])) {
            add(begin, i);
            begin = i + 1;
        }
    }
    add(begin, prompt.size());
    return result;
}

std::optional<std::string> so8t_last_question(const so8t_template & tmpl, const llama_tokens & prompt) {
    std::optional<std::string> question;
    for (const auto & segment : so8t_segments(tmpl, prompt)) {
        if (segment.role == so8t_segment::USER) {
            question = segment.text;
        }
    }
    return question;
}

std::vector<std::string> so8t_read_raw(
    const so8t_template & tmpl, const so8t_policy & policy, const llama_tokens & prompt, const so8t_read & read) {
    std::vector<so8t_reading> later; // as in a chat
    const auto alone = [&](so8t_reading_kind kind, int32_t turn, bool noted, const std::string & text) {
        later.push_back({kind, turn, so8t_key("alone", text), noted,
            [&tmpl, text]() { return std::make_pair(tmpl.alone(text), llama_tokens()); }});
    };
    const auto segments    = so8t_segments(tmpl, prompt);
    const auto was_refused = [&](size_t i) {
        const bool is_answered = i + 1 < segments.size() && segments[i + 1].role == so8t_segment::ASSISTANT;
        std::string next       = is_answered ? segments[i + 1].text : "";
        return so8t_take_own(policy, next) &&
               std::any_of(segments.begin() + i + 2, segments.end(),
                   [](const so8t_segment & segment) { return segment.role == so8t_segment::USER; });
    };
    std::string outside; // of turns
    for (size_t i = 0; i < segments.size(); ++i) {
        const auto & segment = segments[i];
        const auto turn      = (int32_t) i;
        if (segment.role == so8t_segment::OTHER) {
            outside += (outside.empty() ? "" : "\n") + segment.text;
        } else if (segment.role == so8t_segment::ASSISTANT) {
            const llama_tokens before(prompt.begin(), prompt.begin() + segment.n_before);
            std::string text = segment.text;
            so8t_take_own(policy, text);
            if (!so8t_is_blank(text)) {
                read({SO8T_READING_GIVEN, turn, so8t_answer_key(so8t_key(before), text), false,
                    [&]() { return std::make_pair(before, tmpl.literal(text)); }});
            }
        } else {
            llama_tokens tokens(prompt.begin(), prompt.begin() + segment.n_end);
            tokens.push_back(tmpl.end);
            tokens.insert(tokens.end(), tmpl.generation.begin(), tmpl.generation.end());

            const bool noted = policy.refused_turns == SO8T_REFUSED_TURNS_NOTE && was_refused(i);
            if (tokens != prompt && policy.turns != SO8T_TURNS_ALONE) {
                read({SO8T_READING_CONTEXT, turn, so8t_key(tokens), noted,
                    [&]() { return std::make_pair(tokens, llama_tokens()); }});
            }
            if (policy.turns != SO8T_TURNS_CONTEXT && !so8t_is_blank(segment.text) &&
                tokens != tmpl.alone(segment.text)) {
                alone(SO8T_READING_ALONE, turn, noted, segment.text);
            }
        }
    }
    if (!so8t_is_blank(outside) && tmpl.alone(outside) != prompt) {
        alone(SO8T_READING_TEXT, (int32_t) segments.size() - 1, false, outside);
    }
    std::for_each(later.begin(), later.end(), read);
    return {so8t_key(prompt)};
}
