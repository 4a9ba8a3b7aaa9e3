#pragma once

#include <memory>
#include <string>

class common_json;
struct llama_model;
struct so8t_policy;
struct so8t_policy_key;
enum so8t_mode : int;

// The settings of a policy as a user gives them: in a JSON file, and by flags, which override it.

// a policy file as it was read
struct so8t_policy_file {
    std::shared_ptr<const common_json> settings; // null: there is no file, or something is wrong with it
    std::string error;                           // what that is; empty: nothing
};

// settings as they were given, before a model is known
struct so8t_policy_params {
    so8t_policy_file file;                    // --so8t-policy-file
    std::shared_ptr<const common_json> flags; // the same keys

    bool has_reviewers = false; // llama-server has endpoints by which a person can answer escalations
};

// Reads and checks a policy file. It does not throw: an error in it is one only for a model with heads, because
// environment variables reach programs that load other models, too. so8t_policy_init() raises it.
so8t_policy_file so8t_policy_read(const std::string & path);

// adds what the text of a flag says; throws std::invalid_argument, as a file would
void so8t_policy_set(so8t_policy_params & params, const so8t_policy_key & key, const std::string & text);

// the mode that the settings ask for, whatever the model
so8t_mode so8t_policy_mode(const so8t_policy_params & params);

// the policy for this model, null if it has no heads
// throws std::invalid_argument: the error of the policy file, a head or label that the model does not have, no token to
// end an answer with
std::shared_ptr<const so8t_policy> so8t_policy_init(const llama_model * model, const so8t_policy_params & params);

// all settings in force, without the hash
common_json so8t_policy_json(const llama_model * model, const so8t_policy & policy);
