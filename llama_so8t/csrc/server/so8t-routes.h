#pragma once

#include "so8t-server.h"

struct server_http_context;
struct server_routes;

// adds the endpoints of so8t to llama-server: GET /so8t, /so8t/escalations, /so8t/audit, /so8t/ui;
// POST /v1/moderations, /so8t/judge, /so8t/escalations/ID. All but the page ask for the API key.
void so8t_register_routes(const server_http_context & http, const server_routes & routes, so8t_server & server);
