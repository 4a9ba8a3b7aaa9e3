#include "so8t-audit.h"

#include "so8t-audit-anchor.h"
#include "so8t-audit-chain.h"
#include "so8t-audit-files.h"
#include "so8t-audit-key.h"
#include "so8t-file.h"

#include "common.h"
#include "json.h"
#include "log.h"

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <stdexcept>
#include <thread>

#include <fcntl.h>

namespace fs = std::filesystem;

static const auto SO8T_SYNC_PERIOD = std::chrono::seconds(1);

struct so8t_audit::impl {
    explicit impl(const so8t_audit_params & params) :
        params(params),
        files(params.file) {}

    const so8t_audit_params & params;
    std::string key; // of the digests

    mutable std::mutex mutex; // of all below
    so8t_audit_files files;
    so8t_audit_link last;
    bool failed = false;
    bool dirty  = false; // lines or anchor not on the disk yet

    std::condition_variable wake;
    bool stopping = false;
    std::thread syncer;

    void write_line(const char * event, const std::string & fields) {
        so8t_audit_link next = last;
        files.append(so8t_audit_line(next, event, fields));
        last  = next;
        dirty = true;
    }

    void sync() {
        files.sync();
        if (!params.checkpoint_file.empty()) {
            so8t_write_anchor(params.checkpoint_file, params.file, last);
        }
        dirty = false;
    }

    // Where this fails, or the process is killed, the next call, or the next server, goes on at the same step.
    void rotate() {
        if (!files.is_moved()) {
            if (!last.is_rotate) {
                const std::string name = fs::path(params.file).filename().string();
                write_line(SO8T_AUDIT_ROTATE, common_json::object({{"next", name}}).dump_safe());
            }
            if (dirty) {
                sync();
            }
            files.move_away();
        }
        files.begin_new();
        last.is_rotate = false;
    }

    // a line as a whole, or no part of it
    void append(const char * event, const common_json & fields, bool durable) {
        const std::string text = so8t_audit_fields(fields);
        if (!files.is_moved()) {
            files.check();
        }
        if (files.is_moved() || last.is_rotate || (params.max_size > 0 && files.size() >= params.max_size)) {
            rotate();
        }
        const uint64_t size = files.size();
        const auto before   = last;
        try {
            write_line(event, text);
            if (durable || failed) {
                sync();
            }
        } catch (...) {
            files.undo(size);
            last = before;
            throw;
        }
    }

    // said once, until a line is written again
    void fail(const char * what) {
        if (!failed) {
            LOG_ERR("error: %s\n", what);
        }
        failed = true;
    }

    void run() {
        std::unique_lock<std::mutex> lock(mutex);
        while (!wake.wait_for(lock, SO8T_SYNC_PERIOD, [&]() { return stopping; })) {
            if (dirty) {
                try {
                    sync();
                } catch (const std::exception & e) {
                    fail(e.what());
                }
            }
        }
    }
};

// with the default of the key; throws std::runtime_error: two of the files are one
static so8t_audit_params so8t_complete(so8t_audit_params params) {
    if (params.key_file.empty()) {
        params.key_file = params.file + ".key";
    }
    const auto is_same = [](const std::string & a, const std::string & b) {
        return !a.empty() && !b.empty() && fs::absolute(a).lexically_normal() == fs::absolute(b).lexically_normal();
    };
    if (is_same(params.key_file, params.file) || is_same(params.checkpoint_file, params.file) ||
        is_same(params.checkpoint_file, params.key_file)) {
        throw std::runtime_error("so8t: the audit log, its key and its checkpoint need three names, found '" +
                                 params.file + "', '" + params.key_file + "' and '" + params.checkpoint_file + "'");
    }
    return params;
}

so8t_audit::so8t_audit(const so8t_audit_params & given, const common_json & model, const common_json & policy) :
    params(so8t_complete(given)) {
    std::signal(SIGXFSZ, SIG_IGN); // where files may not grow (ulimit -f) a write shall fail, not kill
    try {
        state = std::make_unique<impl>(params);

        uint64_t n_dropped = 0;
        state->last        = state->files.resume(n_dropped);
        if (!params.checkpoint_file.empty()) {
            so8t_check_anchor(params.checkpoint_file, params.file, state->last);
        }
        state->key = so8t_audit_key(params.key_file);
        state->files.cut();
        if (state->last.is_rotate) { // killed before the second step of a rotation
            state->rotate();
        }
        state->write_line(SO8T_AUDIT_OPEN, so8t_audit_fields(common_json::object({
                                               {"model", model},
                                               {"policy", policy},
                                               {"dropped_bytes", n_dropped},
                                           })));
        state->sync();
    } catch (const fs::filesystem_error & e) {
        throw std::runtime_error("so8t: '" + params.file + "': " + e.what());
    }
    state->syncer = std::thread([this]() { state->run(); });
}

so8t_audit::~so8t_audit() {
    {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->stopping = true;
    }
    state->wake.notify_all();
    state->syncer.join();
    append(SO8T_AUDIT_CLOSE, common_json::object(), true);
}

std::optional<so8t_audit::entry> so8t_audit::append(const char * event, const common_json & fields, bool durable) {
    std::lock_guard<std::mutex> lock(state->mutex);
    try {
        state->append(event, fields, durable);
    } catch (const std::exception & e) {
        state->fail(e.what());
        return {};
    }
    if (state->failed) {
        LOG_WRN("so8t: '%s' is written again\n", params.file.c_str());
        state->failed = false;
    }
    return entry{state->last.seq, state->last.hash};
}

common_json so8t_audit::text_record(const std::string & text) const {
    common_json record = common_json::object({{"n_bytes", text.size()}, {"hmac", digest(text)}});
    if (params.text) {
        record["text"] = text;
    }
    return record;
}

common_json so8t_audit::text_record(const std::string & text, int32_t n_tokens) const {
    common_json record      = common_json::object({{"n_tokens", n_tokens}});
    const common_json other = text_record(text);
    for (const auto & [key, value] : other.items()) {
        record[key] = value;
    }
    return record;
}

std::string so8t_audit::digest(const std::string & text) const {
    return so8t_hmac_hex(state->key, text);
}

so8t_audit::entry so8t_audit::last() const {
    std::lock_guard<std::mutex> lock(state->mutex);
    return {state->last.seq, state->last.hash};
}

bool so8t_audit::failed() const {
    std::lock_guard<std::mutex> lock(state->mutex);
    return state->failed;
}

common_json so8t_audit::tail(size_t n) const {
    uint64_t size = 0;
    so8t_file file;
    {
        std::lock_guard<std::mutex> lock(state->mutex);
        size    = state->files.size();
        file.fd = ::fcntl(state->files.descriptor(), F_DUPFD_CLOEXEC, 0); // reading must not keep answers waiting
    }
    if (file.fd < 0) {
        throw so8t_file_error("read", params.file);
    }
    common_json lines = common_json::array();
    for (const auto & line : so8t_last_lines(file.fd, params.file, size, n, 2 * SO8T_AUDIT_MAX_LINE).lines) {
        const common_json record = common_json::parse_no_throw(line);
        if (!record.is_discarded()) {
            lines.push_back(record);
        }
    }
    return lines;
}
