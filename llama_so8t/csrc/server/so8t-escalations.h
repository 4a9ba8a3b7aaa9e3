#pragma once

#include "so8t-verdict.h"

#include "server-common.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

// Answers that wait for a person. Each is decided once: allowed, denied, or timed out.

struct so8t_escalation {
    std::string id;
    so8t_escalation_status status = SO8T_ESCALATION_PENDING;
    int64_t created               = 0; // unix seconds
    int64_t deadline              = 0;
    std::string prompt;
    std::string question; // the part of the prompt that the user said last
    std::string answer;
    json triggered; // so8t_verdict::triggered_json()
    std::string reviewer;
    std::string comment;

    json to_json() const;
};

class so8t_escalations {
  public:
    // on_decision is called for each decision, before the answer is delivered, from any thread; false: an answer may
    // not be released
    explicit so8t_escalations(std::function<bool(const so8t_escalation & decided)> on_decision);
    ~so8t_escalations();

    // deliver sends what was held; called once, after the decision
    void hold(so8t_escalation && entry, std::function<void(const so8t_escalation & decided)> && deliver);

    // no one will decide any more: delivers all that is held
    void end();

    enum result { DECIDED, UNKNOWN, TOO_LATE, NOT_RECORDED };

    // entry: as it is afterwards
    result decide(const std::string & id, bool allow, const std::string & reviewer, const std::string & comment,
        so8t_escalation & entry);

    json list() const; // newest last
    size_t n_pending() const;

  private:
    struct held : so8t_escalation {
        std::function<void(const so8t_escalation & decided)> deliver;
    };

    bool finish(held & entry, so8t_escalation_status status); // needs the lock
    void run();

    std::function<bool(const so8t_escalation &)> on_decision;

    mutable std::mutex mutex;
    std::condition_variable changed;
    std::deque<held> entries; // in order of creation; of the decided ones only the newest
    bool stopping = false;
    std::thread timer; // of the deadlines
};
