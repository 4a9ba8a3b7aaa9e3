#pragma once

#include "so8t-escalations.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

struct server_http_req;
struct server_task;

// The client of a request, as long as it waits for the answers.
class so8t_client {
  public:
    so8t_client()                                = default;
    so8t_client(const so8t_client &)             = delete;
    so8t_client & operator=(const so8t_client &) = delete;
    ~so8t_client();

    // before the tasks are posted; escalations: null if no answer can be held. is_gone may be called from any thread
    // until this object is destroyed.
    // body: as the endpoint reads it
    void attend(so8t_escalations * escalations, const server_http_req & req, const json & body,
        const std::vector<server_task> & tasks, std::function<bool()> && is_gone);

    // Whether a stream that was silent for so long needs a comment, which keeps its connection open. interval: seconds
    // between comments where no answer is held, 0 or less: there are none, not even then.
    bool needs_comment(int32_t interval, int64_t silent_ms) const;

  private:
    so8t_escalations * escalations = nullptr;
    std::vector<so8t_escalations::task> tasks;
};

// A name of a request, in hex: the same for the same bytes of body and files at the same path, from a client that names
// itself in the same way (Authorization, X-Api-Key). Nobody can find it who does not know all of them.
std::string so8t_request_key(const server_http_req & req);

// the value of a header, whose name is in lower case here; empty: there is none
std::string so8t_header(const server_http_req & req, const std::string & name);
