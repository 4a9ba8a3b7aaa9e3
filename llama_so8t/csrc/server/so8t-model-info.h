#pragma once

#include "so8t-policy.h"

#include "server-common.h"

struct llama_model;

// What a model is besides its weights, as GET /so8t, /props and the line "open" of the audit log tell it.

// {NAME: {"labels", "actions", "form", "taps", "tap_norm", "link", "rule", "thresholds", "aggregation",
//   "prompt_aggregation", "prompt_thresholds", "depends_on", ...}}, with the settings that the policy has put in force.
// "sliding_window", "ema_alpha" and "window" only where they mean something; "prompt_thresholds" of heads that judge
// prompts by thresholds.
json so8t_heads_json(const llama_model * model, const so8t_policy & policy);

// {"explicit", "folded", "checked"}
json so8t_rotations_json(const llama_model * model);
