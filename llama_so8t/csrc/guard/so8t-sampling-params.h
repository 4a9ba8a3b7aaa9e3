#pragma once

#include <memory>
#include <string>
#include <vector>

class so8t_guard;
struct so8t_policy;
struct so8t_text_digest;
struct so8t_turn_verdict;

// llama.cpp's common.h includes this file, and nearly all of llama.cpp includes that: types are only named here, so that
// their changes compile little.

// what the sampler of a request knows of so8t
struct so8t_sampling_params {
    std::shared_ptr<const so8t_policy> policy; // null: the model has no heads

    // of one request
    bool trace       = false; // collect the probabilities of every token
    bool annotations = false; // answer with Azure's content_filter_results too
    bool judging     = false; // a text is judged, nothing is generated and nothing enforced

    // of its prompt, besides the last token
    std::shared_ptr<const std::vector<so8t_turn_verdict>> turns;
    std::vector<std::string> prompt_keys; // under which the reading at the last token is remembered

    // what its client wrote, for the audit log; null: there is none
    std::shared_ptr<const std::vector<so8t_text_digest>> messages;
};
