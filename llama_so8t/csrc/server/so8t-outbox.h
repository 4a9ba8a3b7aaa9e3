#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

// Sends items by HTTP POST to a URL of the operator, from a thread of its own: whoever has an item never waits. Items are
// kept in memory, in their order, and sent again while the receiver is away; where more come than the queue holds, the
// newest are dropped and counted. No redirect is followed.
class so8t_outbox {
  public:
    using headers = std::vector<std::pair<std::string, std::string>>;

    struct message {
        std::string body;
        headers more; // of this body
    };

    struct params {
        std::string name; // in the log
        std::string url;  // http, or https in a build with OpenSSL; user and password may stand in it
        std::string content_type = "application/json";
        headers all; // of each message
        size_t max_queued = 2048;
        size_t max_batch  = 1; // items of one message
        int n_tries       = 6; // of one message, 1, 2, 4, ... seconds apart, or as long as the receiver says
        std::chrono::milliseconds delay{0};       // that a message waits for more items
        std::chrono::milliseconds timeout{10000}; // of one try
    };

    struct counts {
        uint64_t sent    = 0; // items
        uint64_t dropped = 0; // refused by the receiver, tried too often, or the queue was full
    };

    // what the receiver of a message may say of its items: how many of them it has not taken
    using rejected = std::function<uint64_t(const std::string & reply)>;

    // pack makes the message of some items; both functions are called from the thread.
    // throws std::invalid_argument: the URL is none, or this build has no TLS
    so8t_outbox(params settings, std::function<message(const std::vector<std::string> & items)> pack,
        rejected count_rejected = nullptr);

    // sends what is left, for at most 5 seconds
    ~so8t_outbox();

    so8t_outbox(const so8t_outbox &)             = delete;
    so8t_outbox & operator=(const so8t_outbox &) = delete;

    bool add(std::string item); // false: it was dropped
    counts count() const;

  private:
    struct client; // of the HTTP library

    void run();
    uint64_t send(const std::vector<std::string> & items);
    bool wait_to_retry(std::chrono::milliseconds time);
    void fail(const std::string & why);

    const params settings;
    const std::function<message(const std::vector<std::string> & items)> pack;
    const rejected count_rejected;
    std::unique_ptr<client> connection;

    mutable std::mutex mutex; // of all below
    std::condition_variable changed;
    std::deque<std::string> queue;
    counts done;
    bool failing  = false; // it was said
    bool stopping = false;
    bool ended    = false;
    std::chrono::steady_clock::time_point deadline;
    std::thread thread;
};
