#pragma once

#include "so8t-verdict.h"

#include "server-common.h"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

// Answers that wait for a person. Each is decided once: allowed as it is or with another text, denied, timed out, or
// cancelled because no client waits for it any more. Deadlines are those of the monotonic clock.

struct so8t_escalation {
    std::string id;
    so8t_escalation_status status = SO8T_ESCALATION_PENDING;
    int64_t created               = 0; // unix milliseconds, as deadline: for people, nothing is measured by them
    int64_t deadline              = 0;
    std::string prompt;
    std::string question; // the part of the prompt that the user said last
    std::string answer;
    std::string sent;      // the part of the answer that the client of a stream has already
    bool editable = false; // another text would not break its form
    json triggered;        // so8t_verdict::triggered_json()
    std::string reviewer;
    std::string comment;
    std::string text; // of an edited one

    json to_json(bool with_texts) const;
};

// what is held
struct so8t_held_answer {
    virtual ~so8t_held_answer() = default;

    // one more client waits, by this task: it gets what the first one got so far, and then all that the first one gets
    virtual void join(int id_task) = 0;

    // sends the end of it to all clients; called once
    virtual void deliver(const so8t_escalation & decided) = 0;
};

struct so8t_decision {
    bool allow;
    std::optional<std::string> text; // to be delivered in place of the answer
    std::string reviewer;
    std::string comment;
};

class so8t_escalations {
  public:
    using clock = std::chrono::steady_clock;

    // settings, and who is told: all are called under a lock, from any thread
    struct params {
        std::string server_id;     // stands in the id of each
        clock::duration grace;     // that a client which went away has to come back
        clock::duration keep_open; // between comments in a stream that is held, 0: none

        std::function<void(const so8t_escalation & held)> on_hold;

        // of each decision, before the answer is delivered; false: an answer may not be released
        std::function<bool(const so8t_escalation & decided)> on_decision;
    };

    explicit so8t_escalations(params && params);
    ~so8t_escalations();

    // A client waits for the answers of tasks, by id. key: the same for the same request of the same client and, of
    // several answers to one, the same one; empty: it is joined by none and joins none.
    // has_tools: an edited answer could be read as a call of one, so none is edited
    struct task {
        int id;
        std::string key;
        bool has_tools;
    };
    void attend(const std::vector<task> & tasks, const std::shared_ptr<const std::function<bool()>> & is_gone);
    void leave(const std::vector<task> & tasks);

    // whether an answer to the same request is held, for which this task now waits, too
    bool join(int id_task);

    // whether one of the tasks waits for a held answer
    bool is_held(const std::vector<task> & tasks) const;
    clock::duration keep_open() const { return settings.keep_open; }

    std::string new_id() const;
    void hold(so8t_escalation && entry, int id_task, double seconds, std::unique_ptr<so8t_held_answer> && answer);

    // no one will decide any more: delivers all that is held
    void end();

    enum result { DECIDED, UNKNOWN, TOO_LATE, GONE, NOT_RECORDED, NOT_EDITABLE, NOT_A_CONTINUATION };

    // entry: as it is afterwards
    result decide(const std::string & id, const so8t_decision & decision, so8t_escalation & entry);

    json list(); // newest last
    size_t n_pending() const;

  private:
    struct client {
        std::string key;
        bool has_tools;
        std::shared_ptr<const std::function<bool()>> is_gone;
    };

    struct held : so8t_escalation {
        std::unique_ptr<so8t_held_answer> content; // null: it is decided
        std::string key;
        std::vector<int> tasks; // of the clients that wait for it
        clock::time_point ends_at;
        clock::time_point gone_at;

        bool is_open() const { return status == SO8T_ESCALATION_PENDING || status == SO8T_ESCALATION_GONE; }
    };

    // these need the lock
    held * find(const std::string & id);
    void look(held & entry);
    bool finish(held & entry, so8t_escalation_status status);
    result check(const held & entry, const so8t_decision & decision) const;
    json entry_json(const held & entry) const;
    clock::time_point look_at_all();
    void forget();

    void run();

    params settings;

    mutable std::mutex mutex;
    std::condition_variable changed;
    std::unordered_map<int, client> clients; // by task
    std::deque<held> entries;                // in order of creation; of the decided ones only the newest
    bool stopping = false;
    std::thread timer; // of the deadlines
};

// The name of this server in the ids of its escalations: the one that was given or, without one, eight hex digits that
// are the same after a restart, and others for another host or port.
std::string so8t_server_id(const std::string & given, int port);
