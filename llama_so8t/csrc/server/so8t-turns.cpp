#include "so8t-turns.h"

#include "server-common.h"

#include "hash/hash.h"

#include <algorithm>
#include <stdexcept>

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

static const size_t SO8T_N_NEAR = 256; // messages at the end of a conversation that are read behind all others
static const size_t SO8T_N_NAME = 64;  // bytes of the longest name that is no text

//
// chat
//

// whether it says something: no name of a tool, of a person or of a call
static bool so8t_is_text(const std::string & name) {
    return name.size() > SO8T_N_NAME || name.find_first_of(" \t\r\n") != std::string::npos;
}

// what a message says, whatever its parts are called
static std::string so8t_text_of(const common_chat_msg & message) {
    std::string text = message.render_content("\n");
    if (!message.reasoning_content.empty()) {
        text = message.reasoning_content + "\n" + text;
    }
    for (const auto & call : message.tool_calls) {
        text += "\n" + call.name + " " + call.arguments;
        text += so8t_is_text(call.id) ? "\n" + call.id : "";
    }
    for (const std::string & name : {message.tool_name, message.tool_call_id}) {
        text += so8t_is_text(name) ? "\n" + name : "";
    }
    return text;
}

// the texts in a value of a request, a line for each
static void so8t_add_texts(const json & value, std::string & texts) {
    if (value.is_string()) {
        const std::string text = value.get<std::string>();
        if (so8t_is_text(text)) {
            texts += (texts.empty() ? "" : "\n") + text;
        }
    } else if (value.is_array() || value.is_object()) {
        for (const auto & [key, item] : value.items()) {
            so8t_add_texts(json(key), texts); // the name of a parameter can be a text
            so8t_add_texts(item, texts);
        }
    }
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

// Goes through the messages of a request once, and has each text read where its role says.
class so8t_chat_walk {
  public:
    so8t_chat_walk(const so8t_template & tmpl, const server_chat_params & chat, const so8t_policy & policy,
        const json & data, const llama_tokens & prompt, so8t_reader & reader) :
        tmpl(tmpl),
        policy(policy),
        reader(reader),
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
        add_beside(json_value(data, "tools", json::array()));
        for (const char * name : {"response_format", "json_schema", "chat_template_kwargs"}) {
            add_beside(json::array({json_value(data, name, json())}));
        }
    }

    // returns the keys of the reading at the last token of the prompt
    std::vector<std::string> walk(const llama_tokens & prompt) {
        options_key = key;
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
        for (const auto & text : beside) {
            read_alone(SO8T_READING_TEXT, messages.empty() ? 0 : messages.size() - 1, false, text);
        }
        for (const auto & reading : later) {
            reader.read(reading);
        }
        if (has_control) { // a text of a client that opens or closes turns
            so8t_read_raw(tmpl, policy, prompt, reader);
        }
        return prompt_keys;
    }

  private:
    void add_beside(const json & values) {
        for (const auto & value : values) {
            std::string text;
            so8t_add_texts(value, text);
            if (!text.empty() && policy.system_texts == SO8T_SYSTEM_TEXTS_ALONE) {
                beside.push_back(text);
            }
        }
    }

    std::string render(size_t begin, size_t end) const {
        return tmpl.render(inputs, std::vector<common_chat_msg>(messages.begin() + begin, messages.begin() + end));
    }

    // A conversation is rendered for each of its turns, so that a long one that is new here would take minutes.
    bool is_far(size_t i, const std::string & key) const {
        return i + SO8T_N_NEAR < messages.size() && !reader.knows(key);
    }

    void read_context(size_t i, bool noted) const {
        reader.read({SO8T_READING_CONTEXT, (int32_t) i, key, noted,
            [&]() { return std::make_pair(tmpl.tokens(render(0, i + 1)), llama_tokens()); }});
    }

    void read_alone(so8t_reading_kind kind, size_t i, bool noted, const std::string & text) {
        later.push_back({kind, (int32_t) i, so8t_key("alone", text), noted,
            [this, text]() { return std::make_pair(tmpl.alone(text), llama_tokens()); }});
    }

    // another turn follows, and before it the guard's own words, or nothing where it was refused here without words
    bool was_refused(size_t i) const {
        const bool is_answered = i + 1 < messages.size() && messages[i + 1].role == "assistant";
        if (policy.refused_turns != SO8T_REFUSED_TURNS_NOTE || !is_answered ||
            std::none_of(messages.begin() + i + 2, messages.end(), so8t_is_turn)) {
            return false;
        }
        std::string next = so8t_text_of(messages[i + 1]);
        return so8t_take_own(policy, next) || (so8t_is_blank(next) && reader.has_refused(key));
    }

    // a turn of a user, or the result of a tool
    void read_turn(size_t i) {
        const std::string text = so8t_text_of(messages[i]);
        const bool noted       = was_refused(i);
        const bool is_last     = i + 1 == messages.size() && is_closed;
        const bool far         = is_far(i, key);
        if (is_last) {
            prompt_keys = {key}; // the slot reads it
        } else if (policy.turns != SO8T_TURNS_ALONE && !has_media && !far) {
            read_context(i, noted);
        }
        // the slot takes control tokens in a text as such
        const bool is_only = is_last && i == 0 && !tmpl.has_control(text) && tmpl.is_alone(rendered, text);
        if (is_only) {
            prompt_keys.push_back(so8t_key("alone", text));
        } else if ((policy.turns != SO8T_TURNS_CONTEXT || far) && !so8t_is_blank(text)) {
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
            return;
        }
        std::string place = so8t_answer_key(key_before, text);
        size_t begin      = 0;
        if (is_far(i, place)) { // behind the turn that it answers
            begin = i - 1;
            while (begin > 0 && !so8t_is_turn(messages[begin])) {
                begin--;
            }
            place = options_key;
            for (size_t j = begin; j < i; ++j) {
                place = so8t_key(place, messages[j].to_json_oaicompat().dump_safe());
            }
            place = so8t_answer_key(place, text);
        }
        reader.read({SO8T_READING_GIVEN, (int32_t) i, place, false,
            [&]() { return std::make_pair(tmpl.tokens(render(begin, i)), tmpl.literal(text)); }});
    }

    // a text of the system; the turns behind it are read with it
    void read_system(size_t i) {
        const std::string text = so8t_text_of(messages[i]);
        if (so8t_is_blank(text)) {
            return;
        }
        const bool has_turn = std::any_of(messages.begin() + i + 1, messages.end(), so8t_is_turn);
        if (policy.system_texts == SO8T_SYSTEM_TEXTS_ALONE || (has_media && !has_turn)) {
            read_alone(SO8T_READING_ALONE, i, false, text);
        }
        if (!has_turn && !has_media && !is_far(i, key) && render(0, i + 1) != rendered) {
            read_context(i, false);
        }
    }

    const so8t_template & tmpl;
    const so8t_policy & policy;
    so8t_reader & reader;

    const std::vector<common_chat_msg> messages;
    const common_chat_templates_inputs inputs;
    const std::string rendered; // the prompt
    const bool is_closed;       // it ends where an answer to the last message begins

    std::vector<std::string> beside; // texts that a template is given besides the messages: each tool, each option
    std::string key;                 // of the messages up to the current one
    std::string key_before;          // and without it
    std::string options_key;         // of none of them
    std::vector<std::string> prompt_keys;
    std::vector<so8t_reading> later; // each text alone: the KV cache keeps the conversation until then
    bool has_media   = false;
    bool has_control = false;
};

std::vector<std::string> so8t_read_chat(const so8t_template & tmpl, const server_chat_params & chat,
    const so8t_policy & policy, const json & data, const llama_tokens & prompt, so8t_reader & reader) {
    return so8t_chat_walk(tmpl, chat, policy, data, prompt, reader).walk(prompt);
}

//
// raw prompts
//

static bool so8t_starts_with(const llama_tokens & tokens, const llama_tokens & start) {
    return !start.empty() && tokens.size() >= start.size() && std::equal(start.begin(), start.end(), tokens.begin());
}

// what stands up to an end-of-turn token, or up to the end
struct so8t_segment {
    enum { USER, ASSISTANT, SYSTEM, OTHER } role;
    size_t n_before; // tokens of the prompt before the text
    size_t n_end;    // and up to its end
    std::string text;
};

static std::vector<so8t_segment> so8t_segments(const so8t_template & tmpl, const llama_tokens & prompt) {
    std::vector<so8t_segment> result;
    const auto add = [&](size_t begin, size_t end) {
        const llama_tokens tokens = tmpl.stripped(prompt.data() + begin, prompt.data() + end);
        so8t_segment segment      = {so8t_segment::OTHER, end - tokens.size(), end, ""};
        if (so8t_starts_with(tokens, tmpl.user)) {
            segment.role      = so8t_segment::USER;
            segment.n_before += tmpl.user.size();
        } else if (so8t_starts_with(tokens, tmpl.assistant)) {
            segment.role      = so8t_segment::ASSISTANT;
            segment.n_before += tmpl.assistant.size();
        } else if (so8t_starts_with(tokens, tmpl.system)) {
            segment.role      = so8t_segment::SYSTEM;
            segment.n_before += tmpl.system.size();
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

std::vector<so8t_text_span> so8t_user_texts(const so8t_template & tmpl, const llama_tokens & prompt) {
    const auto segments = so8t_segments(tmpl, prompt);
    const auto is_read  = [](const so8t_segment & segment) {
        return (segment.role == so8t_segment::USER || segment.role == so8t_segment::OTHER) &&
               !so8t_is_blank(segment.text);
    };
    const bool has_turns = std::any_of(segments.begin(), segments.end(),
        [&](const so8t_segment & segment) { return segment.role == so8t_segment::USER && is_read(segment); });

    std::vector<so8t_text_span> texts;
    for (size_t i = segments.size(); i > 0 && has_turns; --i) {
        const so8t_segment & segment = segments[i - 1];
        if (is_read(segment)) {
            const auto spans = segment.role == so8t_segment::OTHER ?
                                   so8t_text_windows(segment.n_before, segment.n_end) :
                                   std::vector<so8t_text_span>{{(int32_t) segment.n_before, (int32_t) segment.n_end}};
            texts.insert(texts.end(), spans.begin(), spans.end());
        } else if (!texts.empty() && !so8t_is_blank(segment.text)) {
            break; // an answer, or a text of the system, before the last turns
        }
    }
    return texts.empty() ? so8t_text_windows(0, prompt.size()) : texts;
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

std::vector<so8t_client_text> so8t_turn_texts(const so8t_template & tmpl, const llama_tokens & prompt) {
    static const char * const roles[] = {"user", "assistant", "system", ""};

    std::vector<so8t_client_text> texts;
    for (const auto & segment : so8t_segments(tmpl, prompt)) {
        if (segment.role != so8t_segment::OTHER && !so8t_is_blank(segment.text)) {
            texts.push_back({roles[segment.role], segment.text});
        }
    }
    return texts;
}

// Goes through the segments of a prompt that its client has made, as so8t_chat_walk does through messages.
class so8t_raw_walk {
  public:
    so8t_raw_walk(
        const so8t_template & tmpl, const so8t_policy & policy, const llama_tokens & prompt, so8t_reader & reader) :
        tmpl(tmpl),
        policy(policy),
        prompt(prompt),
        reader(reader),
        segments(so8t_segments(tmpl, prompt)) {}

    void walk() {
        for (size_t i = 0; i < segments.size(); ++i) {
            switch (segments[i].role) {
                case so8t_segment::USER:      read_turn(i); break;
                case so8t_segment::ASSISTANT: read_given(i); break;
                case so8t_segment::SYSTEM:    read_system(i); break;
                case so8t_segment::OTHER:     add_outside(i); break;
            }
        }
        if (!so8t_is_blank(outside) && tmpl.alone(outside) != prompt) {
            read_alone(SO8T_READING_TEXT, segments.size() - 1, false, outside);
        }
        for (const auto & reading : later) {
            reader.read(reading);
        }
    }

  private:
    void read_alone(so8t_reading_kind kind, size_t i, bool noted, const std::string & text) {
        later.push_back({kind, (int32_t) i, so8t_key("alone", text), noted,
            [this, text]() { return std::make_pair(tmpl.alone(text), llama_tokens()); }});
    }

    bool has_turn_behind(size_t i) const {
        return std::any_of(segments.begin() + i + 1, segments.end(),
            [](const so8t_segment & segment) { return segment.role == so8t_segment::USER; });
    }

    bool was_refused(size_t i, const std::string & key) const {
        if (policy.refused_turns != SO8T_REFUSED_TURNS_NOTE || !has_turn_behind(i) ||
            segments[i + 1].role != so8t_segment::ASSISTANT) {
            return false;
        }
        std::string next = segments[i + 1].text;
        return so8t_take_own(policy, next) || (so8t_is_blank(next) && reader.has_refused(key));
    }

    void read_turn(size_t i) {
        const auto & segment = segments[i];
        llama_tokens tokens(prompt.begin(), prompt.begin() + segment.n_end);
        tokens.push_back(tmpl.end);
        tokens.insert(tokens.end(), tmpl.generation.begin(), tmpl.generation.end());

        const std::string key = so8t_key(tokens);
        const bool noted      = was_refused(i, key);
        if (tokens != prompt && policy.turns != SO8T_TURNS_ALONE) {
            reader.read({SO8T_READING_CONTEXT, (int32_t) i, key, noted,
                [&]() { return std::make_pair(tokens, llama_tokens()); }});
        }
        if (policy.turns != SO8T_TURNS_CONTEXT && !so8t_is_blank(segment.text) && tokens != tmpl.alone(segment.text)) {
            read_alone(SO8T_READING_ALONE, i, noted, segment.text);
        }
    }

    void read_given(size_t i) {
        const llama_tokens before(prompt.begin(), prompt.begin() + segments[i].n_before);
        std::string text = segments[i].text;
        so8t_take_own(policy, text);
        if (!so8t_is_blank(text)) {
            reader.read({SO8T_READING_GIVEN, (int32_t) i, so8t_answer_key(so8t_key(before), text), false,
                [&]() { return std::make_pair(before, tmpl.literal(text)); }});
        }
    }

    void read_system(size_t i) {
        if (policy.system_texts == SO8T_SYSTEM_TEXTS_ALONE && !so8t_is_blank(segments[i].text)) {
            read_alone(SO8T_READING_ALONE, i, false, segments[i].text);
        } else if (!has_turn_behind(i)) {
            add_outside(i);
        }
    }

    void add_outside(size_t i) { outside += (outside.empty() ? "" : "\n") + segments[i].text; }

    const so8t_template & tmpl;
    const so8t_policy & policy;
    const llama_tokens & prompt;
    so8t_reader & reader;
    const std::vector<so8t_segment> segments;

    std::string outside;             // of turns
    std::vector<so8t_reading> later; // as in a chat
};

std::vector<std::string> so8t_read_raw(
    const so8t_template & tmpl, const so8t_policy & policy, const llama_tokens & prompt, so8t_reader & reader) {
    so8t_raw_walk(tmpl, policy, prompt, reader).walk();
    return {so8t_key(prompt)};
}
