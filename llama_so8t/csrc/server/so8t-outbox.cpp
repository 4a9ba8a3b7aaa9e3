#include "so8t-outbox.h"

#include "common.h"
#include "http.h"
#include "log.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

using so8t_clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

static const auto SO8T_END_TIME = seconds(5); // that the end of the server waits for what is left
static const auto SO8T_MAX_WAIT = seconds(60);

struct so8t_outbox::client {
    httplib::Client http;
    std::string path;
    std::string shown; // without a password
};

so8t_outbox::so8t_outbox(
    params given, std::function<message(const std::vector<std::string> & items)> pack, rejected count_rejected) :
    settings(std::move(given)),
    pack(std::move(pack)),
    count_rejected(std::move(count_rejected)) {
    try {
        auto [http, url] = common_http_client(settings.url);
        connection       = std::make_unique<client>(
            client{std::move(http), url.path, url.scheme + "://" + common_http_format_host(url.host) + url.path});
    } catch (const std::exception & e) {
        throw std::invalid_argument("so8t: " + settings.name + ": '" + settings.url + "': " + string_strip(e.what()));
    }
    connection->http.set_follow_location(false);
    connection->http.set_keep_alive(true);
    connection->http.set_connection_timeout(std::min<milliseconds>(settings.timeout, SO8T_END_TIME));
    connection->http.set_read_timeout(settings.timeout);
    connection->http.set_write_timeout(settings.timeout);
    thread = std::thread([this]() { run(); });
}

so8t_outbox::~so8t_outbox() {
    {
        std::unique_lock<std::mutex> lock(mutex);
        stopping = true;
        deadline = so8t_clock::now() + SO8T_END_TIME;
        changed.notify_all();
        if (!changed.wait_until(lock, deadline, [&]() { return ended; })) {
            connection->http.stop(); // a try that hangs
        }
    }
    thread.join();
    if (done.dropped > 0) {
        LOG_WRN("so8t: %s: %llu items were not delivered\n", settings.name.c_str(), (unsigned long long) done.dropped);
    }
}

bool so8t_outbox::add(std::string item) {
    std::lock_guard<std::mutex> lock(mutex);
    if (stopping || queue.size() >= settings.max_queued) {
        done.dropped++;
        return false;
    }
    queue.push_back(std::move(item));
    changed.notify_all();
    return true;
}

so8t_outbox::counts so8t_outbox::count() const {
    std::lock_guard<std::mutex> lock(mutex);
    return done;
}

void so8t_outbox::run() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
        changed.wait(lock, [&]() { return stopping || !queue.empty(); });
        changed.wait_for(lock, settings.delay, [&]() { return stopping || queue.size() >= settings.max_batch; });
        if (queue.empty() || (stopping && so8t_clock::now() >= deadline)) {
            done.dropped += queue.size();
            break;
        }
        const size_t n = std::min(queue.size(), settings.max_batch);
        std::vector<std::string> items(
            std::make_move_iterator(queue.begin()), std::make_move_iterator(queue.begin() + n));
        queue.erase(queue.begin(), queue.begin() + n);

        lock.unlock();
        const uint64_t n_sent = send(items);
        lock.lock();
        done.sent    += n_sent;
        done.dropped += n - n_sent;
    }
    ended = true;
    changed.notify_all();
}

// false: the server ends first
bool so8t_outbox::wait_to_retry(milliseconds time) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait_for(lock, time, [&]() { return stopping; });
    return !stopping || so8t_clock::now() < deadline;
}

// said once, until a message is delivered again
void so8t_outbox::fail(const std::string & why) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!failing) {
        LOG_WRN("so8t: %s: nothing can be delivered to '%s': %s\n", settings.name.c_str(), connection->shown.c_str(),
            why.c_str());
    }
    failing = true;
}

static milliseconds so8t_retry_after(const httplib::Response & reply, milliseconds otherwise) {
    const std::string given = reply.get_header_value("Retry-After");
    if (given.empty() || given.find_first_not_of("0123456789") != std::string::npos || given.size() > 6) {
        return otherwise;
    }
    return std::min<milliseconds>(seconds(std::atoi(given.c_str())), SO8T_MAX_WAIT);
}

// how many of the items the receiver has taken
uint64_t so8t_outbox::send(const std::vector<std::string> & items) {
    const message packed = pack(items);
    httplib::Headers all;
    for (const headers * some : {&settings.all, &packed.more}) {
        for (const auto & [name, value] : *some) {
            all.emplace(name, value);
        }
    }

    milliseconds pause = seconds(1);
    for (int i = 1; true; ++i) {
        const auto result = connection->http.Post(connection->path, all, packed.body, settings.content_type);
        if (result && result->status >= 200 && result->status < 300) {
            std::lock_guard<std::mutex> lock(mutex);
            failing                   = false;
            const uint64_t n_rejected = count_rejected ? count_rejected(result->body) : 0;
            return items.size() - std::min<uint64_t>(n_rejected, items.size());
        }
        const int status = result ? result->status : 0;
        fail(result ? string_format("status %d", status) : httplib::to_string(result.error()));

        const bool may_retry = status == 0 || status == 408 || status == 429 || status >= 500;
        const auto time      = result ? so8t_retry_after(*result, pause) : pause;
        if (!may_retry || i >= settings.n_tries || !wait_to_retry(time)) {
            return 0;
        }
        pause = std::min<milliseconds>(2 * pause, SO8T_MAX_WAIT);
    }
}
