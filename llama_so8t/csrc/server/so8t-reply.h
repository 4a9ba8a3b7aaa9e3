#pragma once

#include "server-common.h"
#include "server-http.h"

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

// What our endpoints answer, and what they take.

server_http_res_ptr so8t_ok(const json & data);
server_http_res_ptr so8t_error(int status, error_type type, const std::string & message);

// what is wrong with a request of a client: 400
struct so8t_bad_request : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// the handler of an endpoint that answers with an error where this one throws; std::invalid_argument is a 400,
// so8t_unavailable a 503
server_http_context::handler_t so8t_handler(std::function<server_http_res_ptr(const server_http_req &)> handler);

// the object in the body of a request; throws so8t_bad_request: there is none
json so8t_body(const server_http_req & req);

// the same of an endpoint of our own, where a key that is not known is a mistake
json so8t_body(const server_http_req & req, const std::vector<const char *> & keys);
