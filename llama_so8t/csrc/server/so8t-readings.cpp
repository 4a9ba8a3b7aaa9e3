#include "so8t-readings.h"

#include "server-queue.h"

#include "common.h"
#include "log.h"

#include <algorithm>
#include <chrono>
#include <thread>

static const uint32_t SO8T_CTX_SHARE = 8; // texts may be this part of the context longer, by tokens that are text there

//
// the model
//

void so8t_readings::prepare(llama_model * m, const common_params & params, std::shared_ptr<const so8t_policy> policy,
    const server_chat_params & chat, uint32_t n_ctx, server_queue & queue) {
    this->policy = policy;
    this->queue  = &queue;
    std::lock_guard<std::mutex> lock(model_mutex);
    const auto set_finder = [&](const decltype(so8t_text_finder::find) & find) {
        policy->texts->find                      = find;
        params.sampling.so8t.policy->texts->find = find; // of a model that was loaded again
    };
    set_finder([](const llama_tokens & prompt) { return so8t_text_windows(0, prompt.size()); });
    try {
        so8t_template tmpl(llama_model_get_vocab(m), chat);
        set_finder([tmpl](const llama_tokens & prompt) { return so8t_user_texts(tmpl, prompt); });
        const uint32_t n_ctx_max = n_ctx + tmpl.n_around + n_ctx / SO8T_CTX_SHARE;
        model.reset(new loaded_model{tmpl, {m, params, policy, n_ctx_max}, chat, n_ctx});
    } catch (const std::exception & e) { // of the template: nothing is served without a verdict
        template_error = e.what();
        LOG_WRN("%s\n", e.what());
    }
}

void so8t_readings::unload() {
    std::shared_ptr<loaded_model> last;
    {
        std::lock_guard<std::mutex> lock(model_mutex);
        last = std::move(model);
    }
    if (last) {
        last->judge.end();
    }
    while (last.use_count() > 1) { // a thread of a client reads a text
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

void so8t_readings::set_adapters(const std::vector<common_adapter_lora_info> & adapters) {
    std::lock_guard<std::mutex> lock(model_mutex);
    if (model) {
        model->judge.set_adapters(adapters);
    }
    n_changes++; // only now: what is read for a key of the new number is read with the new adapters
    memory.clear();
}

std::shared_ptr<so8t_readings::loaded_model> so8t_readings::get_model() {
    std::lock_guard<std::mutex> lock(model_mutex);
    if (!model && !template_error.empty()) {
        throw std::runtime_error(template_error);
    }
    if (!model) {
        throw so8t_unavailable("so8t: the model is not loaded, so no text can be judged");
    }
    return model;
}

//
// prompts
//

class so8t_readings::request_reader : public so8t_reader {
  public:
    request_reader(so8t_readings & readings, loaded_model & model, const so8t_should_stop & should_stop) :
        readings(readings),
        model(model),
        should_stop(should_stop),
        prefix(std::to_string(readings.n_changes) + " ") {}

    bool knows(const std::string & key) override { return readings.memory.find(prefix + key).has_value(); }
    bool has_refused(const std::string & key) override { return readings.refused.find(key).has_value(); }

    void read(const so8t_reading & reading) override {
        auto found                = readings.memory.find(prefix + reading.key);
        const bool was_remembered = found.has_value();
        size_t n_evaluated        = 0;
        if (!was_remembered) {
            const bool is_given       = reading.kind == SO8T_READING_GIVEN;
            const auto [before, text] = reading.tokens();
            const auto read           = model.judge.read(before, text, is_given, should_stop);

            n_evaluated = read.n_evaluated;
            found       = {read.verdict.parts[is_given ? SO8T_PART_ANSWER : SO8T_PART_PROMPT], read.verdict.triggered};
            readings.memory.keep(prefix + reading.key, *found);
        }
        if (found->part.action != LLAMA_SO8T_ACTION_ALLOW) {
            turns.push_back({reading.kind, reading.turn, reading.noted, found->part, found->triggered});
        }
        std::lock_guard<std::mutex> lock(readings.count_mutex);
        (was_remembered ? readings.counted.n_remembered : readings.counted.n_read)++;
        readings.counted.n_tokens += n_evaluated;
    }

    const std::string & key_prefix() const { return prefix; }

    // those that asked for an action
    std::vector<so8t_turn_verdict> sorted_turns() {
        std::stable_sort(turns.begin(), turns.end(),
            [](const so8t_turn_verdict & a, const so8t_turn_verdict & b) { return a.turn < b.turn; });
        return turns;
    }

  private:
    std::vector<so8t_turn_verdict> turns;

    so8t_readings & readings;
    loaded_model & model;
    const so8t_should_stop & should_stop;
    const std::string prefix; // of keys
};

void so8t_readings::read(so8t_sampling_params & request, const json & body, const server_tokens & prompt, bool is_chat,
    const so8t_should_stop & should_stop) {
    const auto model          = get_model();
    const llama_tokens tokens = prompt.get_text_tokens();
    const int32_t n_vocab     = llama_vocab_n_tokens(model->tmpl.vocab);
    const bool is_valid       = std::all_of(
        tokens.begin(), tokens.end(), [&](llama_token token) { return token >= 0 && token < n_vocab; });
    if (!is_valid || prompt.size() >= model->n_ctx) {
        return; // the slot does not take it and says why
    }
    request_reader reader(*this, *model, should_stop);
    auto keys     = is_chat ? so8t_read_chat(model->tmpl, model->chat, *policy, body, tokens, reader) :
                              so8t_read_raw(model->tmpl, *policy, tokens, reader);
    request.turns = std::make_shared<const std::vector<so8t_turn_verdict>>(reader.sorted_turns());

    if (prompt.size() == tokens.size() && json_value(body, "lora", json::array()).empty()) {
        for (auto & key : keys) { // else what the slot reads is no more than these images, or these adapters
            key = reader.key_prefix() + key;
        }
        request.prompt_keys = std::move(keys);
    }
}

std::vector<so8t_client_text> so8t_readings::turn_texts(const server_tokens & prompt) {
    const auto model = get_model();
    return so8t_turn_texts(model->tmpl, prompt.get_text_tokens());
}

void so8t_readings::remember(
    const so8t_sampling_params & request, const so8t_verdict & verdict, const std::string & answer) {
    if (request.prompt_keys.empty()) {
        return;
    }
    // what asked for an action is read again where it comes back: the verdict may be that of another text of the prompt
    const auto allowed = [&](so8t_part part) { return verdict.parts[part].action == LLAMA_SO8T_ACTION_ALLOW; };
    for (const auto & key : request.prompt_keys) {
        if (allowed(SO8T_PART_PROMPT)) {
            memory.keep(key, {verdict.parts[SO8T_PART_PROMPT], {}});
        }
    }
    const std::string & prompt_key = request.prompt_keys[0];
    const std::string prefix       = prompt_key.substr(0, prompt_key.find(' ') + 1);
    const std::string conversation = prompt_key.substr(prefix.size());

    const bool is_whole = verdict.enforced == SO8T_ENFORCED_NONE;
    if (is_whole && allowed(SO8T_PART_THINK) && allowed(SO8T_PART_ANSWER)) {
        memory.keep(prefix + so8t_answer_key(conversation, answer), {verdict.parts[SO8T_PART_ANSWER], {}});
    }
    if (verdict.triggered.action != LLAMA_SO8T_ACTION_ALLOW && verdict.triggered.part == SO8T_PART_PROMPT &&
        (verdict.enforced == SO8T_ENFORCED_STOP || verdict.enforced == SO8T_ENFORCED_MESSAGE ||
            verdict.enforced == SO8T_ENFORCED_ESCALATION)) {
        refused.keep(conversation, true);
    }
}

so8t_readings::counts so8t_readings::count() const {
    std::lock_guard<std::mutex> lock(count_mutex);
    return counted;
}

//
// texts to be judged
//

so8t_readings::judged_text so8t_readings::judge(const std::vector<common_chat_msg> & messages,
    const std::string * answer, bool only_answer, const so8t_should_stop & should_stop) {
    const auto awake = queue ? queue->stay_awake() : nullptr; // a model that sleeps is loaded again
    const auto model = get_model();

    const llama_tokens prompt = model->tmpl.literal_conversation(messages);
    const llama_tokens tokens = answer ? model->tmpl.literal(*answer) : llama_tokens();
    so8t_verdict verdict      = model->judge.read(prompt, tokens, only_answer, should_stop).verdict;
    return {std::move(verdict), common_detokenize(model->tmpl.vocab, prompt, true), (int32_t) prompt.size()};
}

so8t_readings::judged_text so8t_readings::judge_chat(
    const std::vector<common_chat_msg> & messages, const so8t_should_stop & should_stop) {
    const auto awake = queue ? queue->stay_awake() : nullptr;
    const auto model = get_model();

    json list = json::array();
    for (const auto & message : messages) {
        list.push_back(message.to_json_oaicompat());
    }
    const std::string rendered = model->tmpl.render(so8t_template_inputs(model->chat, json::object()), messages);
    const llama_tokens prompt  = model->tmpl.tokens(rendered);

    so8t_verdict verdict = model->judge.read(prompt, {}, false, should_stop).verdict;
    request_reader reader(*this, *model, should_stop);
    so8t_read_chat(
        model->tmpl, model->chat, *policy, json::object({{"messages", list}, {"prompt", rendered}}), prompt, reader);
    verdict.turns = reader.sorted_turns();
    for (size_t i = 0; i < verdict.turns.size(); ++i) {
        const so8t_trigger & triggered = verdict.turns[i].triggered;
        if (!verdict.turns[i].noted && triggered.action > verdict.triggered.action) {
            verdict.triggered         = triggered;
            verdict.triggered.part    = SO8T_PART_PROMPT;
            verdict.triggered.reading = i;
        }
    }
    return {std::move(verdict), rendered, (int32_t) prompt.size()};
}

std::string so8t_readings::question_of(const std::string & prompt) {
    try {
        const auto model = get_model();
        return so8t_last_question(model->tmpl, model->tmpl.tokens(prompt)).value_or(prompt);
    } catch (const std::exception &) { // there is no model, or no template that can be read
        return prompt;
    }
}
