#pragma once

#include "so8t-audit.h"
#include "so8t-policy-settings.h"

#include <string>
#include <vector>

struct common_arg;
struct common_params;

// The options of so8t in the command line tools and the server.

struct so8t_params {
    std::string json_file; // --so8t-json, one line per turn; empty: none
    so8t_policy_params policy;
    bool require_heads = false; // --so8t-require-heads: a model without a fitted head is an error
    so8t_audit_params audit;
    bool audit_required = true;        // --so8t-audit-on-error refuse: no answer without its line, under enforce
    std::vector<std::string> gateways; // --so8t-gateway: formats whose endpoints are served
    std::string otlp;                  // --so8t-otlp: where events go; empty: nowhere
};

std::vector<common_arg> so8t_args();

// puts the policy for this model into params.sampling; false, and an error line, if it does not fit. Says in one line
// that nothing can be enforced, or that some heads do not act.
bool so8t_init(const llama_model * model, common_params & params);
