#include "so8t-audit.h"

#include "so8t-sha256.h"

#include "common.h"
#include "json.h"
#include "log.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace fs = std::filesystem;

static const size_t SO8T_MAX_LINE    = 16 << 20; // what readers accept
static const size_t SO8T_BLOCK       = 64 << 10;
static const size_t SO8T_HASH_SIZE   = 64;       // hex digits
static const size_t SO8T_HASH_BLOCK  = 64;       // bytes, of HMAC

static const auto SO8T_SYNC_PERIOD = std::chrono::seconds(1);

static std::string so8t_sha256_hex(const std::string & text) {
    return so8t_hex(so8t_sha256().update(text).final());
}

// RFC 2104; the key is shorter than a block
static std::string so8t_hmac_hex(const std::string & key, const std::string & text) {
    std::string inner(SO8T_HASH_BLOCK, 0x36);
    std::string outer(SO8T_HASH_BLOCK, 0x5c);
    for (size_t i = 0; i < key.size(); ++i) {
        inner[i] ^= key[i];
        outer[i] ^= key[i];
    }
    return so8t_hex(so8t_sha256().update(outer).update(so8t_sha256().update(inner).update(text).final()).final());
}

static std::string so8t_now() {
    const auto now = std::chrono::system_clock::now();
    const auto ms  = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
    const std::time_t seconds = ms/1000;

    char text[32];
    std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", std::gmtime(&seconds));
    return string_format("%s.%03dZ", text, (int) (ms%1000));
}

static std::string so8t_bytes(const std::string & hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) {
        bytes += (char) std::stoi(hex.substr(i, 2), nullptr, 16);
    }
    return bytes;
}

static std::string so8t_base64(const std::string & bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (size_t i = 0; i < bytes.size(); i += 3) {
        const size_t n = std::min<size_t>(3, bytes.size() - i);
        uint32_t bits = 0;
        for (size_t j = 0; j < 3; ++j) {
            bits = bits << 8 | (j < n ? (unsigned char) bytes[i + j] : 0);
        }
        for (size_t j = 0; j < 4; ++j) {
            text += j <= n ? digits[bits >> (18 - 6*j) & 63] : '=';
        }
    }
    return text;
}

// the last line of a log
struct so8t_last_line {
    int64_t     seq  = 0;
    std::string hash = std::string(SO8T_HASH_SIZE, '0');
    bool        is_rotate = false;
};

#ifdef _WIN32

struct so8t_audit::impl {};

so8t_audit::so8t_audit(const so8t_audit_params &, const common_json &, const common_json &) {
    throw std::runtime_error("so8t: the audit log is not available on Windows");
}

so8t_audit::~so8t_audit() = default;

std::optional<so8t_audit::entry> so8t_audit::append(const char *, const common_json &, bool) { return {}; }
common_json       so8t_audit::text_record(const std::string &, int32_t) const { return nullptr; }
so8t_audit::entry so8t_audit::last() const { return {}; }
bool              so8t_audit::failed() const { return true; }
common_json       so8t_audit::tail(size_t) const { return nullptr; }

#else

//
// files
//

static std::runtime_error so8t_file_error(const char * what, const std::string & path) {
    return std::runtime_error(string_format("so8t: cannot %s '%s': %s", what, path.c_str(), std::strerror(errno)));
}

static void so8t_write(int fd, const std::string & path, const char * data, size_t size) {
    while (size > 0) {
        const ssize_t n = ::write(fd, data, size);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            throw so8t_file_error("write", path);
        }
        data += n;
        size -= n;
    }
}

static void so8t_sync(int fd, const std::string & path) {
    if (::fsync(fd) != 0) {
        throw so8t_file_error("sync", path);
    }
}

// a new name in a directory is on the disk only when the directory is
static void so8t_sync_directory(const std::string & path) {
    const fs::path parent = fs::absolute(path).parent_path();
    const int fd = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        ::fsync(fd);
        ::close(fd);
    }
}

static std::string so8t_read(int fd, const std::string & path, uint64_t offset, size_t size) {
    std::string data(size, '\0');
    for (size_t n_read = 0; n_read < size; ) {
        const ssize_t n = ::pread(fd, &data[n_read], size - n_read, offset + n_read);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            throw so8t_file_error("read", path);
        }
        n_read += n;
    }
    return data;
}

// the last size bytes of the file as lines, oldest first; what is before the first newline is left out unless it is
// the beginning of the file; unfinished: bytes behind the last newline
static std::vector<std::string> so8t_last_lines(int fd, const std::string & path, uint64_t file_size, size_t n_lines, uint64_t & unfinished) {
    std::string data;
    uint64_t    begin = file_size;
    while (begin > 0 && data.size() < 2*SO8T_MAX_LINE && (size_t) std::count(data.begin(), data.end(), '\n') <= n_lines) {
        const size_t n = std::min<uint64_t>(std::max(SO8T_BLOCK, data.size()), begin);
        begin -= n;
        data = so8t_read(fd, path, begin, n) + data;
    }
    const size_t end = data.rfind('\n') + 1; // 0 without a newline
    unfinished = data.size() - end;

    std::vector<std::string> lines;
    for (size_t at = 0; at < end; ) {
        const size_t newline = data.find('\n', at);
        if (at > 0 || begin == 0) {
            lines.push_back(data.substr(at, newline - at));
        }
        at = newline + 1;
    }
    lines.erase(lines.begin(), lines.end() - std::min(n_lines, lines.size()));
    return lines;
}

static so8t_last_line so8t_parse_last(const std::string & path, const std::string & line) {
    static const std::string mark = ",\"hash\":\"";

    const size_t      n_tail = mark.size() + SO8T_HASH_SIZE + 2;
    const common_json record = common_json::parse_no_throw(line);
    if (line.size() > n_tail && line.compare(line.size() - n_tail, mark.size(), mark) == 0 &&
        !record.is_discarded() && record.is_object() && record.contains("seq") && record.at("seq").is_number_integer() && record.contains("event")) {
        const std::string hash = so8t_sha256_hex(line.substr(0, line.size() - n_tail));
        if (line.compare(line.size() - n_tail, n_tail, mark + hash + "\"}") == 0) {
            return {record.at("seq").get<int64_t>(), hash, record.at("event") == "rotate"};
        }
    }
    throw std::runtime_error("so8t: '" + path + "': the last line is not what its hash says; `so8t audit verify` tells more. "
        "The server does not go on with this log: move it away, with its rotated files, to begin another");
}

// the key of the digests: 64 hex digits in a file, which is made if it is missing
static std::string so8t_audit_key(const std::string & path) {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) {
        std::random_device device;
        std::string key;
        while (key.size() < 32) {
            const uint32_t bits = device();
            key.append((const char *) &bits, sizeof(bits));
        }
        try {
            const std::string text = so8t_hex(key) + "\n";
            so8t_write(fd, path, text.data(), text.size());
            so8t_sync(fd, path);
        } catch (...) {
            ::close(fd);
            ::unlink(path.c_str()); // half a key would be refused for ever
            throw;
        }
        ::close(fd);
        so8t_sync_directory(path);
        return key;
    }
    if (errno != EEXIST) {
        throw so8t_file_error("make", path);
    }
    std::ifstream file(path);
    std::string   text(SO8T_HASH_SIZE, '\0');
    file.read(&text[0], text.size());
    if (!file) {
        text.clear();
    }
    const std::string rest((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (text.empty() || text.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos || !string_strip(rest).empty()) {
        throw std::runtime_error("so8t: '" + path + "': expected the key of the audit log, 64 hex digits");
    }
    return so8t_bytes(text);
}

//
// the log
//

struct so8t_audit::impl {
    std::string key;

    mutable std::mutex mutex;
    int                fd   = -1;
    uint64_t           size = 0;     // of the whole lines
    so8t_last_line     last;
    bool               failed = false;
    bool               dirty  = false; // lines or checkpoint not on the disk yet

    std::condition_variable wake;
    bool                    stopping = false;
    std::thread             syncer;

    ~impl() {
        if (fd >= 0) {
            ::close(fd);
        }
    }

    // opens path for appending, as the only process
    void open(const std::string & path) {
        const int f = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (f < 0) {
            throw so8t_file_error("open", path);
        }
        if (::flock(f, LOCK_EX | LOCK_NB) != 0) {
            ::close(f);
            throw std::runtime_error("so8t: '" + path + "' is written by another process; each server needs a log of its own");
        }
        if (fd >= 0) {
            ::close(fd);
        }
        fd   = f;
        size = ::lseek(fd, 0, SEEK_END);
        if (!is_at(path)) { // moved between the two calls
            throw so8t_file_error("keep", path);
        }
        so8t_sync_directory(path);
    }

    // whether path still names the file that is open
    bool is_at(const std::string & path) const {
        struct stat ours, there;
        return ::fstat(fd, &ours) == 0 && ::stat(path.c_str(), &there) == 0 && ours.st_ino == there.st_ino && ours.st_dev == there.st_dev;
    }

    static int64_t newest_rotated(const std::string & path) {
        const fs::path file   = fs::absolute(path);
        const std::string name = file.filename().string() + ".";

        int64_t newest = 0;
        for (const auto & found : fs::directory_iterator(file.parent_path())) {
            const std::string other = found.path().filename().string();
            if (!string_starts_with(other, name)) {
                continue;
            }
            const std::string number = other.substr(name.size());
            if (!number.empty() && number.size() <= 9 && number[0] != '0' && number.find_first_not_of("0123456789") == std::string::npos) {
                newest = std::max<int64_t>(newest, std::stoll(number));
            }
        }
        return newest;
    }

    // where the chain goes on; returns the bytes of an unfinished line that was cut off
    uint64_t resume(const std::string & path) {
        uint64_t unfinished = 0;
        auto lines = so8t_last_lines(fd, path, size, 1, unfinished);
        if (unfinished > 0) {
            if (::ftruncate(fd, size - unfinished) != 0) {
                throw so8t_file_error("truncate", path);
            }
            size -= unfinished;
        }
        if (!lines.empty()) {
            last = so8t_parse_last(path, lines.back());
        } else if (size > 0) {
            last = so8t_parse_last(path, ""); // a line longer than any
        } else if (const int64_t n = newest_rotated(path)) { // killed between the two steps of a rotation
            const std::string rotated = path + "." + std::to_string(n);
            const int f = ::open(rotated.c_str(), O_RDONLY | O_CLOEXEC);
            if (f < 0) {
                throw so8t_file_error("read", rotated);
            }
            uint64_t rest = 0;
            lines = so8t_last_lines(f, rotated, fs::file_size(rotated), 1, rest);
            ::close(f);
            last = so8t_parse_last(rotated, lines.empty() || rest > 0 ? "" : lines.back());
            last.is_rotate = false;
        }
        return unfinished;
    }

    void write_line(const std::string & path, const std::string & event, const std::string & fields) {
        std::string line = string_format("{\"seq\":%lld,\"time\":\"%s\",\"event\":\"%s\"", (long long) last.seq + 1, so8t_now().c_str(), event.c_str());
        if (fields.size() > 2) {
            line += "," + fields.substr(1, fields.size() - 2);
        }
        line += ",\"prev\":\"" + last.hash + "\"";
        const std::string hash = so8t_sha256_hex(line);
        line += ",\"hash\":\"" + hash + "\"}\n";

        // what a failed write has left behind
        if (::ftruncate(fd, size) != 0) {
            throw so8t_file_error("truncate", path);
        }
        so8t_write(fd, path, line.data(), line.size());
        dirty = true;
        size += line.size();
        last  = {last.seq + 1, hash, event == "rotate"};
    }

    void sync(const so8t_audit_params & params) {
        so8t_sync(fd, params.file);
        if (!params.checkpoint_file.empty()) {
            const std::string path = params.checkpoint_file;
            const std::string note = "so8t-audit/" + fs::path(params.file).filename().string() + "\n" +
                std::to_string(last.seq) + "\n" + so8t_base64(so8t_bytes(last.hash)) + "\n\n";

            const std::string incoming = path + ".tmp";
            const int f = ::open(incoming.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
            if (f < 0) {
                throw so8t_file_error("write", incoming);
            }
            try {
                so8t_write(f, incoming, note.data(), note.size());
                so8t_sync(f, incoming);
            } catch (...) {
                ::close(f);
                throw;
            }
            ::close(f);
            if (::rename(incoming.c_str(), path.c_str()) != 0) {
                throw so8t_file_error("replace", path);
            }
        }
        dirty = false;
    }

    // the file ends with a line "rotate", gets the next number, and a new one takes its name
    void rotate(const so8t_audit_params & params) {
        const std::string & path = params.file;
        if (!last.is_rotate) {
            write_line(path, "rotate", common_json::object({{"next", fs::path(path).filename().string()}}).dump_safe());
            sync(params);
        }
        const std::string rotated = path + "." + std::to_string(newest_rotated(path) + 1);
        if (is_at(path) && ::rename(path.c_str(), rotated.c_str()) != 0) { // elsewhere: an earlier try came this far
            throw so8t_file_error("rename", path);
        }
        open(path);
        if (size > 0) {
            throw std::runtime_error("so8t: '" + path + "' is no new file, so the log cannot go on in it");
        }
        last.is_rotate = false;
    }

    // said once, until a line is written again
    void fail(const char * what) {
        if (!failed) {
            LOG_ERR("error: %s\n", what);
        }
        failed = true;
    }

    void run(const so8t_audit_params & params) {
        std::unique_lock<std::mutex> lock(mutex);
        while (!wake.wait_for(lock, SO8T_SYNC_PERIOD, [&]() { return stopping; })) {
            if (dirty) {
                try {
                    sync(params);
                } catch (const std::exception & e) {
                    fail(e.what());
                }
            }
        }
    }
};

so8t_audit::so8t_audit(const so8t_audit_params & params, const common_json & model, const common_json & policy)
    : params(params), state(std::make_unique<impl>()) {
    if (this->params.key_file.empty()) {
        this->params.key_file = params.file + ".key";
    }
    try {
        state->open(params.file);
        const uint64_t dropped = state->resume(params.file);
        state->key = so8t_audit_key(this->params.key_file);
        if (state->last.is_rotate) { // killed before the second step of a rotation
            state->rotate(params);
        }
        state->write_line(params.file, "open", common_json::object({
            {"model", model}, {"policy", policy}, {"dropped_bytes", dropped},
        }).dump_safe());
        state->sync(params);
    } catch (const fs::filesystem_error & e) {
        throw std::runtime_error("so8t: '" + params.file + "': " + e.what());
    }
    state->syncer = std::thread([this]() { state->run(this->params); });
}

so8t_audit::~so8t_audit() {
    {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->stopping = true;
    }
    state->wake.notify_all();
    state->syncer.join();
    append("close", common_json::object(), true);
}

std::optional<so8t_audit::entry> so8t_audit::append(const char * event, const common_json & fields, bool durable) {
    std::string text = fields.dump_safe();
    if (text.size() > SO8T_MAX_LINE - 1024) { // the digests are there all the same
        common_json without = fields;
        for (const char * part : {"prompt", "answer"}) {
            if (without.contains(part)) {
                without.at(part).erase("text");
            }
        }
        text = without.dump_safe();
    }

    std::lock_guard<std::mutex> lock(state->mutex);
    try {
        if (state->last.is_rotate || (params.max_size > 0 && state->size >= params.max_size)) {
            state->rotate(params);
        }
        if (!state->is_at(params.file)) {
            throw std::runtime_error("so8t: '" + params.file + "' was moved or removed while the server writes it");
        }
        const uint64_t size = state->size;
        const auto     last = state->last;
        try {
            state->write_line(params.file, event, text);
            if (durable) {
                state->sync(params);
            }
        } catch (...) {
            state->size = size;
            state->last = last;
            GGML_UNUSED(::ftruncate(state->fd, size)); // tried again before the next line
            throw;
        }
    } catch (const std::exception & e) {
        state->fail(e.what());
        return {};
    }
    if (state->failed) {
        LOG_WRN("so8t: '%s' is written again\n", params.file.c_str());
        state->failed = false;
    }
    return entry {state->last.seq, state->last.hash};
}

common_json so8t_audit::text_record(const std::string & text, int32_t n_tokens) const {
    common_json record = common_json::object({
        {"n_tokens", n_tokens},
        {"n_bytes",  text.size()},
        {"hmac",     so8t_hmac_hex(state->key, text)},
    });
    if (params.text) {
        record["text"] = text;
    }
    return record;
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
    std::lock_guard<std::mutex> lock(state->mutex);
    uint64_t unfinished = 0;
    common_json lines = common_json::array();
    for (const auto & line : so8t_last_lines(state->fd, params.file, state->size, n, unfinished)) {
        const common_json record = common_json::parse_no_throw(line);
        if (!record.is_discarded()) {
            lines.push_back(record);
        }
    }
    return lines;
}

#endif
