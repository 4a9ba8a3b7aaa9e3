#include "so8t-escalations.h"

#include <algorithm>
#include <chrono>
#include <ctime>

static const size_t SO8T_MAX_DECIDED = 100; // kept for the list

json so8t_escalation::to_json() const {
    json result = {
        {"id", id},
        {"status", so8t_escalation_status_name(status)},
        {"created", created},
        {"deadline", deadline},
        {"prompt", prompt},
        {"question", question},
        {"answer", answer},
        {"triggered", triggered},
        {"reviewer", nullptr},
        {"comment", nullptr},
    };
    if (!reviewer.empty()) {
        result["reviewer"] = reviewer;
    }
    if (!comment.empty()) {
        result["comment"] = comment;
    }
    return result;
}

so8t_escalations::so8t_escalations(std::function<bool(const so8t_escalation &)> on_decision) :
    on_decision(std::move(on_decision)),
    timer([this]() { run(); }) {}

so8t_escalations::~so8t_escalations() {
    end();
    timer.join();
}

void so8t_escalations::hold(so8t_escalation && entry, std::function<void(const so8t_escalation & decided)> && deliver) {
    std::lock_guard<std::mutex> lock(mutex);
    entries.push_back({std::move(entry), std::move(deliver)});
    if (stopping) {
        finish(entries.back(), SO8T_ESCALATION_SHUTDOWN);
    }
    changed.notify_all();
}

void so8t_escalations::end() {
    std::lock_guard<std::mutex> lock(mutex);
    stopping = true;
    for (auto & entry : entries) {
        if (entry.status == SO8T_ESCALATION_PENDING) {
            finish(entry, SO8T_ESCALATION_SHUTDOWN);
        }
    }
    changed.notify_all();
}

so8t_escalations::result so8t_escalations::decide(const std::string & id, bool allow, const std::string & reviewer,
    const std::string & comment, so8t_escalation & entry) {
    std::lock_guard<std::mutex> lock(mutex);
    for (auto & e : entries) {
        if (e.id != id) {
            continue;
        }
        if (e.status != SO8T_ESCALATION_PENDING) {
            entry = e;
            return TOO_LATE;
        }
        e.reviewer         = reviewer;
        e.comment          = comment;
        const bool decided = finish(e, allow ? SO8T_ESCALATION_ALLOWED : SO8T_ESCALATION_DENIED);
        entry              = e;
        return decided ? DECIDED : NOT_RECORDED;
    }
    return UNKNOWN;
}

// under the lock: an entry is decided, recorded and delivered in one step
bool so8t_escalations::finish(held & entry, so8t_escalation_status status) {
    entry.status = status;
    if (!on_decision(entry) && status == SO8T_ESCALATION_ALLOWED) {
        entry.status = SO8T_ESCALATION_PENDING;
        entry.reviewer.clear();
        entry.comment.clear();
        return false;
    }
    entry.deliver(entry);
    entry.deliver = nullptr; // frees the answer
    return true;
}

void so8t_escalations::run() {
    std::unique_lock<std::mutex> lock(mutex);
    while (!stopping) {
        const int64_t now = std::time(nullptr);

        int64_t next     = now + 3600;
        size_t n_decided = 0;
        for (auto & entry : entries) {
            if (entry.status == SO8T_ESCALATION_PENDING && entry.deadline <= now) {
                finish(entry, SO8T_ESCALATION_TIMEOUT);
            }
            if (entry.status == SO8T_ESCALATION_PENDING) {
                next = std::min(next, entry.deadline);
            } else {
                n_decided++;
            }
        }
        for (auto it = entries.begin(); it != entries.end() && n_decided > SO8T_MAX_DECIDED;) {
            const bool decided  = it->status != SO8T_ESCALATION_PENDING;
            it                  = decided ? entries.erase(it) : it + 1;
            n_decided          -= decided;
        }
        changed.wait_for(lock, std::chrono::seconds(next - now));
    }
}

json so8t_escalations::list() const {
    std::lock_guard<std::mutex> lock(mutex);
    json result = json::array();
    for (const auto & entry : entries) {
        result.push_back(entry.to_json());
    }
    return result;
}

size_t so8t_escalations::n_pending() const {
    std::lock_guard<std::mutex> lock(mutex);
    return std::count_if(
        entries.begin(), entries.end(), [](const auto & e) { return e.status == SO8T_ESCALATION_PENDING; });
}
