#pragma once

#include "so8t-memory.h"
#include "so8t-text-judge.h"
#include "so8t-turns.h"

#include "server-common.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

struct server_queue;

// The texts that llama-server reads apart from the slots: those of a prompt besides its last token, which are remembered,
// and those that a client only wants to be judged. All functions may be called from any thread.
class so8t_readings {
  public:
    struct counts {
        uint64_t n_read       = 0; // texts of prompts
        uint64_t n_remembered = 0;
        uint64_t n_tokens     = 0; // evaluated for those that were read
    };

    // the verdict of a conversation and, if it was given one, of an answer to it
    struct judged_text {
        so8t_verdict verdict;
        std::string prompt; // as it was read
        int32_t n_prompt;   // tokens
    };

    // after the model is loaded, also when it is loaded again after a sleep; n_ctx: of a slot
    void prepare(llama_model * model, const common_params & params, std::shared_ptr<const so8t_policy> policy,
        const server_chat_params & chat, uint32_t n_ctx, server_queue & queue);

    // the model goes, at the end or for a sleep: no text is read until prepare() is called again
    void unload();

    // adapters of the model, as POST /lora-adapters has set them: what was read with others is forgotten
    void set_adapters(const std::vector<common_adapter_lora_info> & adapters);

    // Reads the texts of a prompt, and sets the verdicts of turns and the keys of the request.
    // throws so8t_unavailable: not now; std::exception: the template refuses a turn
    void read(so8t_sampling_params & request, const json & body, const server_tokens & prompt, bool is_chat,
        const so8t_should_stop & should_stop);

    // the turns in a prompt that its client has made
    std::vector<so8t_client_text> turn_texts(const server_tokens & prompt);

    // Nothing is enforced. Control tokens in the texts are text. The server does not go to sleep meanwhile.
    // throws as read() does
    judged_text judge(const std::vector<common_chat_msg> & messages, const std::string * answer, bool only_answer,
        const so8t_should_stop & should_stop);

    // the same of a conversation, at its end and of each of its turns, as of a request that is answered here
    judged_text judge_chat(const std::vector<common_chat_msg> & messages, const so8t_should_stop & should_stop);

    // what the user said last in a prompt, as the chat template writes it; the prompt itself where this is not known
    std::string question_of(const std::string & prompt);

    // remembers what a slot has read: the conversation may come back with more behind it
    void remember(const so8t_sampling_params & request, const so8t_verdict & verdict, const std::string & answer);

    counts count() const;

  private:
    // what can read a text, as long as the model is loaded
    struct loaded_model {
        so8t_template tmpl;
        so8t_text_judge judge;
        const server_chat_params & chat;
        uint32_t n_ctx; // of a slot
    };

    // what was read at a place
    struct entry {
        so8t_part_verdict part;
        so8t_trigger triggered;
    };

    class request_reader;

    std::shared_ptr<loaded_model> get_model();

    std::shared_ptr<const so8t_policy> policy;
    server_queue * queue = nullptr;

    std::mutex model_mutex;
    std::shared_ptr<loaded_model> model; // null while it is not loaded, or if its chat template drops texts
    std::string template_error;          // then this says how

    // Keys begin with the number of changes of the adapters, so that nothing is remembered of adapters that have gone.
    std::atomic<uint64_t> n_changes{0};
    so8t_memory<entry> memory{16384};
    so8t_memory<bool> refused{16384}; // prompts

    mutable std::mutex count_mutex;
    counts counted;
};
