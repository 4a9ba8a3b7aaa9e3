#pragma once

#include "so8t-server.h"

#include "server-http.h"

struct server_routes;

// adds the endpoints of so8t to llama-server: GET /so8t, /so8t/escalations, /so8t/audit, /so8t/ui;
// POST /v1/moderations, /so8t/judge, /so8t/escalations/ID. All but the page ask for the API key.
void so8t_register_routes(const server_http_context & http, const server_routes & routes, so8t_server & server);

// before a text is judged: the model is loaded again after a sleep; throws so8t_bad_request: it has no heads
void so8t_make_ready(const so8t_server & server, const server_routes & routes, const server_http_req & req);

// the page of people
server_http_res_ptr so8t_get_ui();
