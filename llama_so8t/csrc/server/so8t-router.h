#pragma once

struct common_params;
struct server_http_context;
struct server_models;

// Our endpoints in the router mode of llama-server, where each model has a process of its own. What is about one model
// goes to its process, named by "model" in the body or ?model= behind the path; answers that wait for a person are
// listed and decided over all of them.

// Adds the endpoints. Returns false, and an error line, if a setting cannot work with more than one model.
bool so8t_register_router(const server_http_context & http, server_models & models, const common_params & params);
