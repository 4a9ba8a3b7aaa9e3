#include "so8t-template.h"

#include "server-common.h"

#include <algorithm>
#include <stdexcept>

static const char * const SO8T_PLACE = "So8tPlaceOfTheText"; // stands for a text in a rendering

static common_chat_msg so8t_user_message(const std::string & text) {
    common_chat_msg message;
    message.role    = "user";
    message.content = text;
    return message;
}

llama_tokens so8t_template::stripped(const llama_token * begin, const llama_token * end) const {
    begin = std::find_if(begin, end, [&](llama_token token) {
        return token != llama_vocab_bos(vocab) && !string_strip(common_token_to_piece(vocab, token, true)).empty();
    });
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
    n_around                  = before.size() + after.size();
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
    assistant  = stripped(generation.data(), generation.data() + generation.size());
    user       = stripped(before.data() + i_user, before.data() + before.size());
    find_system();
}

void so8t_template::find_system() {
    common_chat_msg message;
    message.role    = "system";
    message.content = SO8T_PLACE;
    std::string rendered;
    try {
        rendered = render({}, {message, so8t_user_message("")});
    } catch (const std::exception &) {
        return; // it has no texts of the system
    }
    const auto before = common_tokenize(vocab, rendered.substr(0, rendered.find(SO8T_PLACE)), true, true);
    const auto tokens = stripped(before.data(), before.data() + before.size());
    const bool is_one = rendered.find(SO8T_PLACE) != std::string::npos && tokens != user &&
                        std::none_of(tokens.begin(), tokens.end(),
                            [&](llama_token token) { return llama_vocab_is_eog(vocab, token); });
    system            = is_one ? tokens : llama_tokens();
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
