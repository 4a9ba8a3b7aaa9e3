#include "so8t-client.h"

#include "so8t-hex.h"
#include "so8t-sha256.h"

#include "server-http.h"
#include "server-task.h"

#include <algorithm>
#include <cctype>
#include <memory>

std::string so8t_header(const server_http_req & req, const std::string & name) {
    const auto is_same = [](char a, char b) { return std::tolower((unsigned char) a) == b; };
    for (const auto & [key, value] : req.headers) {
        if (std::equal(key.begin(), key.end(), name.begin(), name.end(), is_same)) {
            return value;
        }
    }
    return "";
}

std::string so8t_request_key(const server_http_req & req) {
    so8t_sha256 hash;
    const auto add = [&](const void * data, size_t size) {
        const uint64_t n = size; // before the bytes, so that no two lists of them are one
        hash.update(&n, sizeof(n)).update(data, size);
    };
    for (const std::string & text :
        {so8t_header(req, "authorization"), so8t_header(req, "x-api-key"), req.path, req.query_string, req.body}) {
        add(text.data(), text.size());
    }
    for (const auto & [name, file] : req.files) {
        add(name.data(), name.size());
        add(file.data.data(), file.data.size());
    }
    return so8t_hex(hash.final());
}

so8t_client::~so8t_client() {
    if (escalations) {
        escalations->leave(tasks);
    }
}

void so8t_client::attend(so8t_escalations * escalations, const server_http_req & req, const json & body,
    const std::vector<server_task> & server_tasks, std::function<bool()> && is_gone) {
    if (!escalations) {
        return;
    }
    const std::string key = so8t_request_key(req);
    const bool has_tools  = body.contains("tools") && !body.at("tools").empty();
    for (size_t i = 0; i < server_tasks.size(); ++i) {
        const auto & task = server_tasks[i];
        // the choices of one prompt share its evaluation, so none of them can be left out
        tasks.push_back({task.id, task.is_parent() ? "" : key + "/" + std::to_string(i), has_tools});
        for (const auto & child : task.child_tasks) {
            tasks.push_back({child.id, "", has_tools});
        }
    }
    this->escalations = escalations;
    escalations->attend(tasks, std::make_shared<const std::function<bool()>>(std::move(is_gone)));
}

bool so8t_client::needs_comment(int32_t interval, int64_t silent_ms) const {
    if (interval <= 0) {
        return false;
    }
    auto period = std::chrono::milliseconds((int64_t) interval * 1000);
    if (escalations && escalations->is_held(tasks)) {
        period = std::min(period, std::chrono::duration_cast<std::chrono::milliseconds>(escalations->keep_open()));
    }
    return period.count() > 0 && silent_ms >= period.count();
}
