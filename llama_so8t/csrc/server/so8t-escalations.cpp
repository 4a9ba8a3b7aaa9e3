#include "so8t-escalations.h"

#include "so8t-hex.h"
#include "so8t-sha256.h"

#include <algorithm>
#include <cmath>

#ifdef _WIN32
#include <winsock2.h>
#else
#include <unistd.h>
#endif

static const size_t SO8T_MAX_DECIDED = 100;                     // kept for the list
static const auto SO8T_LOOK_PERIOD   = std::chrono::seconds(1); // whether clients are still there

//
// to JSON
//

static json so8t_text_or_null(const std::string & text) {
    return text.empty() ? json(nullptr) : json(text);
}

json so8t_escalation::to_json(bool with_texts) const {
    json result = {
        {"id", id},
        {"status", so8t_escalation_status_name(status)},
        {"created", created / 1000.0},
        {"deadline", deadline / 1000.0},
        {"triggered", triggered},
        {"reviewer", so8t_text_or_null(reviewer)},
        {"comment", so8t_text_or_null(comment)},
    };
    if (with_texts) {
        result["prompt"]   = prompt;
        result["question"] = question;
        result["answer"]   = answer;
        result["sent"]     = sent;
        result["editable"] = editable;
        result["text"]     = so8t_text_or_null(text);
    }
    return result;
}

// with what changes as time goes on
json so8t_escalations::entry_json(const held & entry) const {
    json result         = entry.to_json(true);
    result["clients"]   = entry.tasks.size();
    result["remaining"] = nullptr;
    if (entry.is_open()) {
        const std::chrono::duration<double> left = entry.ends_at - clock::now();
        result["remaining"]                      = std::max(0.0, std::round(left.count() * 10) / 10);
    }
    return result;
}

//
// clients
//

so8t_escalations::so8t_escalations(params && params) :
    settings(std::move(params)),
    timer([this]() { run(); }) {}

so8t_escalations::~so8t_escalations() {
    end();
    timer.join();
}

void so8t_escalations::attend(
    const std::vector<task> & tasks, const std::shared_ptr<const std::function<bool()>> & is_gone) {
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto & task : tasks) {
        clients[task.id] = {task.key, task.has_tools, is_gone};
    }
}

void so8t_escalations::leave(const std::vector<task> & tasks) {
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto & task : tasks) {
        clients.erase(task.id);
    }
    changed.notify_all();
}

// Clients that went away wait no longer. A client is asked here and not only where llama.cpp asks, which is once a
// second, so that nobody decides in vain.
void so8t_escalations::look(held & entry) {
    if (!entry.is_open()) {
        return;
    }
    const auto is_gone = [&](int id_task) {
        const auto found = clients.find(id_task);
        return found == clients.end() || (*found->second.is_gone)();
    };
    entry.tasks.erase(std::remove_if(entry.tasks.begin(), entry.tasks.end(), is_gone), entry.tasks.end());
    if (entry.tasks.empty() && entry.status == SO8T_ESCALATION_PENDING) {
        entry.status  = SO8T_ESCALATION_GONE;
        entry.gone_at = clock::now();
    }
}

bool so8t_escalations::join(int id_task) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = clients.find(id_task);
    if (found == clients.end() || found->second.key.empty()) {
        return false;
    }
    held * joined = nullptr;
    for (auto & entry : entries) { // one whose client went away is more likely the one that is asked for
        if (entry.is_open() && entry.key == found->second.key) {
            look(entry);
            joined = !joined || entry.status == SO8T_ESCALATION_GONE ? &entry : joined;
        }
    }
    if (!joined) {
        return false;
    }
    joined->tasks.push_back(id_task);
    joined->status = SO8T_ESCALATION_PENDING;
    joined->content->join(id_task);
    return true;
}

bool so8t_escalations::is_held(const std::vector<task> & tasks) const {
    std::lock_guard<std::mutex> lock(mutex);
    return std::any_of(entries.begin(), entries.end(), [&](const held & entry) {
        return entry.is_open() && std::any_of(tasks.begin(), tasks.end(), [&](const task & task) {
            return std::find(entry.tasks.begin(), entry.tasks.end(), task.id) != entry.tasks.end();
        });
    });
}

//
// held answers
//

std::string so8t_escalations::new_id() const {
    return "esc-" + settings.server_id + "." + random_string();
}

void so8t_escalations::hold(
    so8t_escalation && entry, int id_task, double seconds, std::unique_ptr<so8t_held_answer> && answer) {
    const auto wait = std::chrono::duration<double>(seconds);
    const auto now  = std::chrono::system_clock::now().time_since_epoch();
    const auto ms   = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();

    std::lock_guard<std::mutex> lock(mutex);
    held & kept                          = entries.emplace_back();
    static_cast<so8t_escalation &>(kept) = std::move(entry);
    kept.created                         = ms;
    kept.deadline                        = ms + (int64_t) (seconds * 1000);
    kept.ends_at                         = clock::now() + std::chrono::duration_cast<clock::duration>(wait);
    kept.content                         = std::move(answer);
    kept.tasks                           = {id_task};
    if (const auto found = clients.find(id_task); found != clients.end()) {
        kept.key      = found->second.key;
        kept.editable = kept.editable && !found->second.has_tools;
    }
    settings.on_hold(kept);
    look(kept);
    if (stopping) {
        finish(kept, SO8T_ESCALATION_SHUTDOWN);
    }
    changed.notify_all();
}

void so8t_escalations::end() {
    std::lock_guard<std::mutex> lock(mutex);
    stopping = true;
    for (auto & entry : entries) {
        if (entry.is_open()) {
            look(entry);
            finish(entry, SO8T_ESCALATION_SHUTDOWN);
        }
    }
    changed.notify_all();
}

so8t_escalations::held * so8t_escalations::find(const std::string & id) {
    const auto found = std::find_if(entries.begin(), entries.end(), [&](const held & entry) { return entry.id == id; });
    return found == entries.end() ? nullptr : &*found;
}

so8t_escalations::result so8t_escalations::check(const held & entry, const so8t_decision & decision) const {
    if (entry.status == SO8T_ESCALATION_GONE || entry.status == SO8T_ESCALATION_CANCELLED) {
        return GONE;
    }
    if (entry.status != SO8T_ESCALATION_PENDING) {
        return TOO_LATE;
    }
    if (decision.text && !entry.editable) {
        return NOT_EDITABLE;
    }
    if (decision.text && decision.text->compare(0, entry.sent.size(), entry.sent) != 0) {
        return NOT_A_CONTINUATION;
    }
    return DECIDED;
}

so8t_escalations::result so8t_escalations::decide(
    const std::string & id, const so8t_decision & decision, so8t_escalation & entry) {
    std::lock_guard<std::mutex> lock(mutex);
    held * e = find(id);
    if (!e) {
        return UNKNOWN;
    }
    look(*e);
    result result = check(*e, decision);
    if (result == DECIDED) {
        const bool edited = decision.text && *decision.text != e->answer;

        e->reviewer = decision.reviewer;
        e->comment  = decision.comment;
        e->text     = edited ? *decision.text : "";
        result      = finish(*e, !decision.allow ? SO8T_ESCALATION_DENIED :
                                 edited          ? SO8T_ESCALATION_EDITED :
                                                   SO8T_ESCALATION_ALLOWED) ?
                          DECIDED :
                          NOT_RECORDED;
    }
    entry = *e;
    return result;
}

// an entry is decided, recorded and delivered in one step
bool so8t_escalations::finish(held & entry, so8t_escalation_status status) {
    const bool cancelled = entry.tasks.empty();
    entry.status         = cancelled ? SO8T_ESCALATION_CANCELLED : status;
    const bool released  = entry.status == SO8T_ESCALATION_ALLOWED || entry.status == SO8T_ESCALATION_EDITED;
    if (!settings.on_decision(entry) && released) {
        entry.status = SO8T_ESCALATION_PENDING;
        entry.reviewer.clear();
        entry.comment.clear();
        entry.text.clear();
        return false;
    }
    if (!cancelled) {
        entry.content->deliver(entry);
    }
    entry.content = nullptr; // frees the answer
    entry.tasks.clear();
    return true;
}

//
// time
//

// decides what is over, and returns when to look again
so8t_escalations::clock::time_point so8t_escalations::look_at_all() {
    auto next = clock::now() + std::chrono::hours(1);
    for (auto & entry : entries) {
        look(entry);
        const bool gone = entry.status == SO8T_ESCALATION_GONE;
        const auto end  = gone ? std::min(entry.ends_at, entry.gone_at + settings.grace) : entry.ends_at;
        if (entry.is_open() && end <= clock::now()) {
            finish(entry, SO8T_ESCALATION_TIMEOUT);
        } else if (entry.is_open()) {
            next = std::min({next, end, clock::now() + SO8T_LOOK_PERIOD});
        }
    }
    return next;
}

// of those that are decided, the oldest
void so8t_escalations::forget() {
    size_t n_decided = std::count_if(entries.begin(), entries.end(), [](const held & e) { return !e.is_open(); });
    for (auto it = entries.begin(); it != entries.end() && n_decided > SO8T_MAX_DECIDED;) {
        const bool decided  = !it->is_open();
        it                  = decided ? entries.erase(it) : it + 1;
        n_decided          -= decided;
    }
}

void so8t_escalations::run() {
    std::unique_lock<std::mutex> lock(mutex);
    while (!stopping) {
        const auto next = look_at_all();
        forget();
        changed.wait_until(lock, next);
    }
}

json so8t_escalations::list() {
    std::lock_guard<std::mutex> lock(mutex);
    json result = json::array();
    for (auto & entry : entries) {
        look(entry);
        result.push_back(entry_json(entry));
    }
    return result;
}

size_t so8t_escalations::n_pending() const {
    std::lock_guard<std::mutex> lock(mutex);
    return std::count_if(
        entries.begin(), entries.end(), [](const auto & e) { return e.status == SO8T_ESCALATION_PENDING; });
}

std::string so8t_server_id(const std::string & given, int port) {
    if (!given.empty()) {
        return given;
    }
    char host[256] = {0};
    if (gethostname(host, sizeof(host) - 1) != 0) {
        host[0] = '\0';
    }
    return so8t_hex(so8t_sha256().update(string_format("%s:%d", host, port)).final()).substr(0, 8);
}
