#pragma once

#include "so8t-server.h"

#include <string>
#include <vector>

struct server_http_context;

// Endpoints in the formats of gateways that ask a guard before and after they ask a model of their own. The operator
// names the gateways (--so8t-gateway):
//   litellm       POST /beta/litellm_basic_guardrail_api: LiteLLM's generic guardrail
//   agentgateway  POST /request, POST /response: the guardrail webhook of agentgateway and kgateway
// Whatever the policy, they say what the heads ask for; what asks for a person is blocked, as nobody is waited for.

// the names, and the paths of each
struct so8t_gateway {
    const char * name;
    std::vector<const char *> paths;
};
const std::vector<so8t_gateway> & so8t_gateways();

void so8t_register_gateways(
    const server_http_context & http, so8t_server & server, const std::vector<std::string> & names);
