#pragma once

#include "so8t-audit.h"
#include "so8t-heads-files.h"
#include "so8t-policy-settings.h"

#include <string>
#include <vector>

struct common_arg;
struct common_params;

// The options of so8t in the command line tools and the server.

// how answers are held for reviewers (docs/escalations.md); how long, the policy says
struct so8t_escalation_params {
    double grace = 15;            // --so8t-escalation-grace, seconds that a client that went away has to come back
    double ping  = 5;             // --so8t-escalation-ping, seconds between comments in a held stream, 0: none
    std::string server_id;        // --so8t-server-id, in the id of each held answer; empty: made from host and port
    std::string reviewers_file;   // --so8t-reviewers; empty: a reviewer is who the request says
    std::string webhook_url;      // --so8t-webhook; empty: none
    std::string webhook_key_file; // --so8t-webhook-key
};

struct so8t_params {
    std::string json_file;              // --so8t-json, one line per turn; empty: none
    std::vector<so8t_heads_file> heads; // --so8t-heads, beside the heads of the model
    std::string model_sha256; // of the tensors of the model, and without those of its heads; empty: not yet needed
    std::string base_sha256;
    so8t_policy_params policy;
    bool require_heads = false; // --so8t-require-heads: a model without a fitted head is an error
    so8t_audit_params audit;
    so8t_escalation_params escalation;
    bool audit_required = true;        // --so8t-audit-on-error refuse: no answer without its line, under enforce
    std::vector<std::string> gateways; // --so8t-gateway: formats whose endpoints are served
    std::string otlp;                  // --so8t-otlp: where events go; empty: nowhere
};

std::vector<common_arg> so8t_args();

// Gives the model the heads of --so8t-heads and puts the policy for it into params.sampling, before LoRA adapters are
// loaded and a context is made; false, and an error line, if something does not fit. Says in one line that nothing can
// be enforced, or that some heads do not act.
bool so8t_init(llama_model * model, common_params & params);
