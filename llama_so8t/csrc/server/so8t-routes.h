#pragma once

#include "so8t-server.h"

#include "server-http.h"

// adds the endpoints of so8t to llama-server: GET /so8t, /so8t/escalations, /so8t/audit, /so8t/ui;
// POST /v1/moderations, /so8t/judge, /so8t/escalations/ID. All but the page ask for the API key.
void so8t_register_routes(const server_http_context & http, so8t_server & server);

// throws so8t_bad_request: the model has none, so no text can be judged
void so8t_need_heads(const so8t_server & server);

// the page of people
server_http_res_ptr so8t_get_ui();
