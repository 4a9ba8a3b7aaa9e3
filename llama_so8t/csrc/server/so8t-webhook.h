#pragma once

#include "so8t-outbox.h"

#include "server-common.h"

#include <memory>
#include <string>

// Tells a receiver of the operator what becomes of held answers: POST requests in the form of Standard Webhooks
// (https://www.standardwebhooks.com), signed with HMAC-SHA256.
class so8t_webhook {
  public:
    // Throws std::invalid_argument: the URL is none, or https in a build without TLS; the file has no key of 24 to 64
    // bytes in the form whsec_BASE64.
    so8t_webhook(const std::string & url, const std::string & key_file);

    // {"type", "timestamp", "data"}; returns at once
    void send(const char * type, const json & data);

    so8t_outbox::counts count() const { return outbox->count(); }

  private:
    std::unique_ptr<so8t_outbox> outbox;
};
