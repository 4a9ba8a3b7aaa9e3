#include "so8t-webhook.h"

#include "so8t-sha256.h"

#include "common.h"

#include "base64.hpp"

#include <ctime>
#include <fstream>
#include <stdexcept>
#include <vector>

static const size_t SO8T_MAX_EVENTS   = 1000; // that wait
static const size_t SO8T_MAX_KEY_FILE = 1024;

static std::string so8t_webhook_key(const std::string & path) {
    std::ifstream file(path);
    std::string text(SO8T_MAX_KEY_FILE, '\0');
    file.read(&text[0], text.size());
    text.resize(file.gcount());
    text = string_strip(text);

    const std::string prefix = "whsec_";
    std::string key;
    if (text.compare(0, prefix.size(), prefix) == 0) {
        try {
            key = base64::decode(text.substr(prefix.size()));
        } catch (const std::exception &) {
            key.clear();
        }
    }
    if (key.size() < 24 || key.size() > 64) {
        throw std::invalid_argument("so8t: --so8t-webhook-key '" + path +
                                    "': expected a file with whsec_ and 24 to 64 random bytes in base64, as "
                                    "`echo whsec_$(openssl rand -base64 32)` writes them");
    }
    return key;
}

static std::string so8t_utc(std::time_t seconds) {
    std::tm utc = {};
#ifdef _WIN32
    gmtime_s(&utc, &seconds);
#else
    gmtime_r(&seconds, &utc);
#endif
    char text[32];
    std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
    return text;
}

so8t_webhook::so8t_webhook(const std::string & url, const std::string & key_file) {
    if (url.empty() || key_file.empty()) {
        throw std::invalid_argument(url.empty() ?
                                        "so8t: --so8t-webhook-key '" + key_file + "' needs --so8t-webhook URL" :
                                        "so8t: --so8t-webhook '" + url + "' needs --so8t-webhook-key FILE");
    }
    const std::string key = so8t_webhook_key(key_file);

    so8t_outbox::params params;
    params.name       = "--so8t-webhook";
    params.url        = url;
    params.max_queued = SO8T_MAX_EVENTS;

    outbox = std::make_unique<so8t_outbox>(params, [key](const std::vector<std::string> & items) {
        const std::string & body = items.at(0);
        const std::string id     = "msg_" + random_string(); // the same in every try
        const std::string time   = std::to_string(std::time(nullptr));
        return so8t_outbox::message{
            body, {
                      {"webhook-id", id},
                      {"webhook-timestamp", time},
                      {"webhook-signature", "v1," + base64::encode(so8t_hmac(key, id + "." + time + "." + body))},
                  }};
    });
}

void so8t_webhook::send(const char * type, const json & data) {
    outbox->add(safe_json_to_str({{"type", type}, {"timestamp", so8t_utc(std::time(nullptr))}, {"data", data}}));
}
