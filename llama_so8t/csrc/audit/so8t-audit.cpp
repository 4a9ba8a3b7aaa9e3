#include "so8t-audit.h"

#include "so8t-sha256.h"

#include "base64.hpp"
#include "common.h"
#include "hash/hash.h"
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
#include <csignal>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace fs = std::filesystem;

static const size_t SO8T_MAX_LINE   = 16 << 20;             // what readers accept
static const size_t SO8T_MAX_FIELDS = SO8T_MAX_LINE - 1024; // of it
static const int64_t SO8T_MAX_SEQ   = (int64_t) 1 << 53;    // exact in every JSON reader
static const size_t SO8T_BLOCK      = 64 << 10;
static const size_t SO8T_HASH_SIZE  = 64; // hex digits
static const size_t SO8T_HASH_BLOCK = 64; // bytes, of HMAC

static const auto SO8T_SYNC_PERIOD = std::chrono::seconds(1);

static std::string so8t_sha256_hex(const std::string & text) {
    return hash_sha256_hex(text.data(), text.size());
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

#ifdef _WIN32

struct so8t_audit::impl {};

so8t_audit::so8t_audit(const so8t_audit_params &, const common_json &, const common_json &) {
    throw std::runtime_error("so8t: the audit log is not available on Windows");
}

so8t_audit::~so8t_audit() = default;

std::optional<so8t_audit::entry> so8t_audit::append(const char *, const common_json &, bool) {
    return {};
}
common_json so8t_audit::text_record(const std::string &, int32_t) const {
    return nullptr;
}
so8t_audit::entry so8t_audit::last() const {
    return {};
}
bool so8t_audit::failed() const {
    return true;
}
common_json so8t_audit::tail(size_t) const {
    return nullptr;
}

#else

static std::string so8t_now() {
    const auto now            = std::chrono::system_clock::now();
    const auto ms             = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
    const std::time_t seconds = ms / 1000;

    struct tm utc;
    char text[32];
    std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", gmtime_r(&seconds, &utc));
    return string_format("%s.%03dZ", text, (int) (ms % 1000));
}

static std::string so8t_bytes(const std::string & hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) {
        bytes += (char) std::stoi(hex.substr(i, 2), nullptr, 16);
    }
    return bytes;
}

// the last line of a log
struct so8t_last_line {
    int64_t seq      = 0;
    std::string hash = std::string(SO8T_HASH_SIZE, '0');
    bool is_rotate   = false;
};

//
// files
//

static std::runtime_error so8t_file_error(const char * what, const std::string & path) {
    return std::runtime_error(string_format("so8t: cannot %s '%s': %s", what, path.c_str(), std::strerror(errno)));
}

// closes a file at the end of a scope
struct so8t_file {
    int fd = -1;

    so8t_file() = default;

    so8t_file(const std::string & path, int flags, mode_t mode = 0) :
        fd( // no link: who can make one in this folder could have another file written
            ::open(path.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, mode)) {}

    ~so8t_file() {
        if (fd >= 0) {
            ::close(fd);
        }
    }

    so8t_file(const so8t_file &)             = delete;
    so8t_file & operator=(const so8t_file &) = delete;

    int release() {
        const int result = fd;
        fd               = -1;
        return result;
    }
};

static void so8t_write(int fd, const std::string & path, uint64_t offset, const std::string & data) {
    for (size_t n_written = 0; n_written < data.size();) {
        const ssize_t n = ::pwrite(fd, data.data() + n_written, data.size() - n_written, offset + n_written);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            throw so8t_file_error("write", path);
        }
        n_written += n;
    }
}

static std::string so8t_read(int fd, const std::string & path, uint64_t offset, size_t size) {
    std::string data(size, '\0');
    for (size_t n_read = 0; n_read < size;) {
        const ssize_t n = ::pread(fd, &data[n_read], size - n_read, offset + n_read);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            throw so8t_file_error("read", path);
        }
        if (n == 0) {
            throw std::runtime_error("so8t: '" + path + "' was shortened while it was read");
        }
        n_read += n;
    }
    return data;
}

static void so8t_sync(int fd, const std::string & path) {
    if (::fsync(fd) != 0) {
        throw so8t_file_error("sync", path);
    }
}

// a new name in a directory is on the disk only when the directory is; not every file system can do it
static void so8t_sync_directory(const std::string & path) {
    const fs::path parent = fs::absolute(path).parent_path();
    const int fd          = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        ::fsync(fd);
        ::close(fd);
    }
}

// writes all of a file beside path; the caller gives it its name
static std::string so8t_write_beside(const std::string & path, const std::string & data, mode_t mode) {
    const std::string incoming = path + ".tmp";
    if (::unlink(incoming.c_str()) != 0 && errno != ENOENT) { // of a server that was killed
        throw so8t_file_error("replace", incoming);
    }
    const so8t_file file(incoming, O_WRONLY | O_CREAT | O_EXCL, mode);
    if (file.fd < 0) {
        throw so8t_file_error("make", incoming);
    }
    so8t_write(file.fd, incoming, 0, data);
    so8t_sync(file.fd, incoming);
    return incoming;
}

// the last n lines of the first size bytes of a file, oldest first, fewer if they are very long; end: where they end,
// behind the last newline
static std::vector<std::string> so8t_last_lines(
    int fd, const std::string & path, uint64_t size, size_t n, uint64_t & end) {
    std::string data;
    uint64_t begin = size;
    while (begin > 0 && data.size() < 2 * SO8T_MAX_LINE && (size_t) std::count(data.begin(), data.end(), '\n') <= n) {
        const size_t n_more  = std::min<uint64_t>(std::max(SO8T_BLOCK, data.size()), begin);
        begin               -= n_more;
        data                 = so8t_read(fd, path, begin, n_more) + data;
    }
    const size_t n_whole = data.rfind('\n') + 1; // 0 without a newline
    end                  = begin + n_whole;

    std::vector<std::string> lines;
    for (size_t at = 0; at < n_whole;) {
        const size_t newline = data.find('\n', at);
        if (at > 0 || begin == 0) { // else the line begins before what was read
            lines.push_back(data.substr(at, newline - at));
        }
        at = newline + 1;
    }
    lines.erase(lines.begin(), lines.end() - std::min(n, lines.size()));
    return lines;
}

static std::runtime_error so8t_damaged(const std::string & path) {
    return std::runtime_error("so8t: '" + path +
                              "': the last line is not what its hash says; `so8t audit verify` tells more. "
                              "The server does not go on with this log: move it away, with its rotated files and its "
                              "checkpoint, to begin another");
}

static so8t_last_line so8t_parse_last(const std::string & path, const std::string & line) {
    static const std::string mark = ",\"hash\":\"";

    const size_t n_tail      = mark.size() + SO8T_HASH_SIZE + 2;
    const common_json record = common_json::parse_no_throw(line);
    if (line.size() > n_tail && !record.is_discarded() && record.is_object() && record.contains("seq") &&
        record.at("seq").is_number_integer() && record.contains("event")) {
        const std::string hash = so8t_sha256_hex(line.substr(0, line.size() - n_tail));
        const int64_t seq      = record.at("seq").get<int64_t>();
        if (line.compare(line.size() - n_tail, n_tail, mark + hash + "\"}") == 0 && seq > 0 && seq < SO8T_MAX_SEQ) {
            return {seq, hash, record.at("event") == "rotate"};
        }
    }
    throw so8t_damaged(path);
}

// the key of the digests: 64 hex digits in a file, which is made if it is missing
static std::string so8t_audit_key(const std::string & path) {
    if (!fs::exists(path)) {
        std::random_device device;
        std::string key;
        while (key.size() < 32) {
            const uint32_t bits = device();
            key.append((const char *) &bits, sizeof(bits));
        }
        // whole or not at all, and never in the place of another
        const std::string incoming = so8t_write_beside(path, so8t_hex(key) + "\n", 0600);
        const bool made            = ::link(incoming.c_str(), path.c_str()) == 0 || errno == EEXIST;
        if (!made) {
            throw so8t_file_error("make", path);
        }
        ::unlink(incoming.c_str());
        so8t_sync_directory(path);
        LOG_INF("so8t: made '%s', the key of the digests in the audit log\n", path.c_str());
    }
    std::ifstream file(path); // may be a link: secrets of containers are
    std::string text(SO8T_HASH_SIZE + 16, '\0');
    file.read(&text[0], text.size());
    text.resize(file.gcount());
    text = string_strip(text);
    if (text.size() != SO8T_HASH_SIZE || text.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
        throw std::runtime_error("so8t: '" + path + "': expected the key of the audit log, 64 hex digits");
    }
    if ((fs::status(path).permissions() & fs::perms::others_read) != fs::perms::none) {
        LOG_WRN("so8t: every user of this machine can read '%s' and test guesses of logged texts; chmod 600 it\n",
            path.c_str());
    }
    return so8t_bytes(text);
}

static std::string so8t_note(const so8t_audit_params & params, const so8t_last_line & last) {
    return "so8t-audit/" + fs::path(params.file).filename().string() + "\n" + std::to_string(last.seq) + "\n" +
           base64::encode(so8t_bytes(last.hash)) + "\n\n";
}

// a log that ends before its own checkpoint has lost lines since, and one with another line there is another log
static void so8t_check_note(const so8t_audit_params & params, const so8t_last_line & last) {
    const std::string & path = params.checkpoint_file;
    if (path.empty() || !fs::exists(path) || (fs::is_regular_file(path) && fs::is_empty(path))) {
        return;
    }
    std::string origin, seq, hash;
    if (fs::is_regular_file(path)) {
        std::ifstream file(path);
        std::getline(file, origin);
        std::getline(file, seq);
        std::getline(file, hash);
    }
    const std::string expected = "so8t-audit/" + fs::path(params.file).filename().string();
    if (origin != expected || seq.empty() || seq.size() > 16 ||
        seq.find_first_not_of("0123456789") != std::string::npos) {
        throw std::runtime_error("so8t: '" + path + "' is not the checkpoint of '" + params.file +
                                 "' (its first line is not '" + expected + "'), so it is not written over");
    }
    const int64_t n = std::stoll(seq);
    if (n > last.seq || (n == last.seq && hash != base64::encode(so8t_bytes(last.hash)))) {
        throw std::runtime_error(string_format("so8t: '%s' ends at seq %lld with another line than its checkpoint "
                                               "'%s', which has seq %s: lines were cut off or written anew. "
                                               "The server does not go on with this log: move it away, with its "
                                               "rotated files and its checkpoint, to begin another",
            params.file.c_str(), (long long) last.seq, path.c_str(), seq.c_str()));
    }
}

//
// the log
//

// the fields of a line, without texts, and then with fewer verdicts, if it were too long: digests and decision remain
static std::string so8t_fields(const common_json & fields) {
    std::string text = fields.dump_safe();
    if (text.size() <= SO8T_MAX_FIELDS) {
        return text;
    }
    common_json shorter = fields;
    for (const char * part : {"prompt", "answer"}) {
        if (shorter.contains(part)) {
            shorter.at(part).erase("text");
        }
    }
    text = shorter.dump_safe();
    if (text.size() > SO8T_MAX_FIELDS && fields.contains("verdicts")) {
        const common_json & verdicts = fields.at("verdicts");
        const size_t n_over          = text.size() - SO8T_MAX_FIELDS + 64;
        size_t n_kept                = verdicts.size();
        for (size_t n_cut = 0; n_kept > 0 && n_cut < n_over;) {
            n_cut += verdicts.at(--n_kept).dump_safe().size() + 1; // and a comma
        }
        common_json kept = common_json::array();
        for (size_t i = 0; i < n_kept; ++i) {
            kept.push_back(verdicts.at(i));
        }
        shorter["verdicts"]         = kept;
        shorter["verdicts_omitted"] = verdicts.size() - n_kept;
        text                        = shorter.dump_safe();
    }
    if (text.size() > SO8T_MAX_FIELDS) {
        throw std::runtime_error(
            string_format("so8t: an audit line of %zu bytes is longer than readers accept", text.size()));
    }
    return text;
}

struct so8t_audit::impl {
    std::string key;

    mutable std::mutex mutex;
    int fd          = -1;
    uint64_t size   = 0;     // of the whole lines
    uint64_t synced = 0;     // of them on the disk
    bool torn       = false; // a part of a line may stand behind them
    bool unsure     = false; // what a failed sync has left on the disk
    bool moved      = false; // a rotation has renamed the file, and has no new one yet
    bool failed     = false;
    bool dirty      = false; // lines or checkpoint not on the disk yet
    so8t_last_line last;

    std::condition_variable wake;
    bool stopping = false;
    std::thread syncer;

    ~impl() {
        if (fd >= 0) {
            ::close(fd);
        }
    }

    // opens path, as the only process; returns its size
    uint64_t open(const std::string & path, bool is_new) {
        so8t_file file(path, O_RDWR | O_CREAT, 0640); // a witness may be in the group
        struct stat info = {};
        if (file.fd < 0) {
            throw errno == ELOOP ? std::runtime_error("so8t: '" + path + "' is a symbolic link; name the file itself") :
                                   so8t_file_error("open", path);
        }
        if (::fstat(file.fd, &info) != 0 || !S_ISREG(info.st_mode)) {
            throw std::runtime_error("so8t: '" + path + "' is not a regular file");
        }
        if (::flock(file.fd, LOCK_EX | LOCK_NB) != 0) {
            throw errno != EWOULDBLOCK ?
                so8t_file_error("lock", path) :
                std::runtime_error(
                    "so8t: '" + path + "' is written by another process; each server needs a log of its own");
        }
        if (!is_at(file.fd, path) || ::fstat(file.fd, &info) != 0) { // its writer rotated it before we had the lock
            throw std::runtime_error("so8t: '" + path + "' was moved while it was opened");
        }
        if (is_new && info.st_size > 0) {
            throw std::runtime_error("so8t: '" + path + "' is no new file, so the log cannot go on in it");
        }
        so8t_sync_directory(path);
        if (fd >= 0) {
            ::close(fd);
        }
        fd = file.release();
        return info.st_size;
    }

    static bool is_at(int fd, const std::string & path) {
        struct stat ours, there;
        return ::fstat(fd, &ours) == 0 && ::lstat(path.c_str(), &there) == 0 && ours.st_ino == there.st_ino &&
               ours.st_dev == there.st_dev;
    }

    // the file has its name and its size
    void check(const std::string & path) const {
        if (!is_at(fd, path)) {
            throw std::runtime_error("so8t: '" + path + "' was moved or removed while the server writes it");
        }
        struct stat info;
        if (::fstat(fd, &info) != 0) {
            throw so8t_file_error("read", path);
        }
        if ((uint64_t) info.st_size < size || ((uint64_t) info.st_size > size && !torn)) {
            throw std::runtime_error(string_format(
                "so8t: '%s' has %lld bytes, the server wrote %llu: somebody else shortened it or wrote to it",
                path.c_str(), (long long) info.st_size, (unsigned long long) size));
        }
    }

    static int64_t newest_rotated(const std::string & path) {
        const fs::path file    = fs::absolute(path);
        const std::string name = file.filename().string() + ".";

        int64_t newest = 0;
        for (const auto & found : fs::directory_iterator(file.parent_path())) {
            const std::string other = found.path().filename().string();
            if (!string_starts_with(other, name)) {
                continue;
            }
            const std::string number = other.substr(name.size());
            if (!number.empty() && number.size() <= 9 && number[0] != '0' &&
                number.find_first_not_of("0123456789") == std::string::npos) {
                newest = std::max<int64_t>(newest, std::stoll(number));
            }
        }
        return newest;
    }

    // where the chain goes on; returns the bytes of an unfinished line, which is cut off when the rest is found right
    uint64_t resume(const std::string & path) {
        uint64_t end              = 0;
        const auto lines          = so8t_last_lines(fd, path, size, 1, end);
        const uint64_t unfinished = size - end;
        if (unfinished > SO8T_MAX_LINE || (lines.empty() && end > 0)) {
            throw so8t_damaged(path);
        }
        if (!lines.empty()) {
            last = so8t_parse_last(path, lines.back());
        } else if (const int64_t n = newest_rotated(path)) { // killed between the steps of a rotation
            const std::string rotated = path + "." + std::to_string(n);
            const so8t_file file(rotated, O_RDONLY);
            if (file.fd < 0) {
                throw so8t_file_error("read", rotated);
            }
            if (::flock(file.fd, LOCK_SH | LOCK_NB) != 0) { // not killed, it is between the steps just now
                throw std::runtime_error(
                    "so8t: '" + rotated + "' is written by another process; each server needs a log of its own");
            }
            const uint64_t rotated_size = fs::file_size(rotated);
            const auto rotated_lines    = so8t_last_lines(file.fd, rotated, rotated_size, 1, end);
            last = so8t_parse_last(rotated, rotated_lines.empty() || end < rotated_size ? "" : rotated_lines.back());
            last.is_rotate = false;
        }
        torn  = unfinished > 0;
        size -= unfinished;
        return unfinished;
    }

    void write_line(const std::string & path, const std::string & event, const std::string & fields) {
        std::string line = string_format("{\"seq\":%lld,\"time\":\"%s\",\"event\":\"%s\"", (long long) last.seq + 1,
            so8t_now().c_str(), event.c_str());
        if (fields.size() > 2) {
            line += "," + fields.substr(1, fields.size() - 2);
        }
        line                   += ",\"prev\":\"" + last.hash + "\"";
        const std::string hash  = so8t_sha256_hex(line);
        line                   += ",\"hash\":\"" + hash + "\"}\n";

        cut(path);
        torn = true;
        so8t_write(fd, path, size, line);
        torn   = false;
        dirty  = true;
        size  += line.size();
        last   = {last.seq + 1, hash, event == "rotate"};
    }

    // what a failed write has left behind the last line
    void cut(const std::string & path) {
        if (torn && ::ftruncate(fd, size) != 0) {
            throw so8t_file_error("truncate", path);
        }
        torn = false;
    }

    void sync(const so8t_audit_params & params) {
        if (unsure && size > synced) {
            // after a failed sync the kernel takes pages for written that are not, so they are written again
            so8t_write(fd, params.file, synced, so8t_read(fd, params.file, synced, size - synced));
        }
        unsure = true;
        so8t_sync(fd, params.file);
        unsure = false;
        synced = size;

        const std::string & path = params.checkpoint_file;
        if (!path.empty()) {
            const std::string incoming = so8t_write_beside(path, so8t_note(params, last), 0644);
            if (::rename(incoming.c_str(), path.c_str()) != 0) {
                throw so8t_file_error("replace", path);
            }
        }
        dirty = false;
    }

    // The file ends with a line "rotate", gets the next number, and a new one takes its name. Where this fails, or the
    // process is killed, the next call, or the next server, goes on at the same step.
    void rotate(const so8t_audit_params & params) {
        const std::string & path = params.file;
        if (!moved) {
            if (!last.is_rotate) {
                write_line(
                    path, "rotate", common_json::object({{"next", fs::path(path).filename().string()}}).dump_safe());
            }
            if (dirty) {
                sync(params);
            }
            const std::string rotated = path + "." + std::to_string(newest_rotated(path) + 1);
            if (::rename(path.c_str(), rotated.c_str()) != 0) {
                throw so8t_file_error("rename", path);
            }
            moved = true;
        }
        size           = open(path, true);
        synced         = 0;
        moved          = false;
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

so8t_audit::so8t_audit(const so8t_audit_params & params, const common_json & model, const common_json & policy) :
    params(params),
    state(std::make_unique<impl>()) {
    if (this->params.key_file.empty()) {
        this->params.key_file = params.file + ".key";
    }
    const auto is_same = [](const std::string & a, const std::string & b) {
        return !a.empty() && !b.empty() && fs::absolute(a).lexically_normal() == fs::absolute(b).lexically_normal();
    };
    const auto & key_file = this->params.key_file;
    if (is_same(key_file, params.file) || is_same(params.checkpoint_file, params.file) ||
        is_same(params.checkpoint_file, key_file)) {
        throw std::runtime_error("so8t: the audit log, its key and its checkpoint need three names, found '" +
                                 params.file + "', '" + key_file + "' and '" + params.checkpoint_file + "'");
    }
    std::signal(SIGXFSZ, SIG_IGN); // where files may not grow (ulimit -f) a write shall fail, not kill
    try {
        state->size = state->synced = state->open(params.file, false);
        const uint64_t dropped      = state->resume(params.file);
        so8t_check_note(params, state->last);
        state->key = so8t_audit_key(this->params.key_file);
        state->cut(params.file);
        if (state->last.is_rotate) { // killed before the second step of a rotation
            state->rotate(params);
        }
        state->write_line(params.file, "open",
            so8t_fields(common_json::object({
                {"model", model},
                {"policy", policy},
                {"dropped_bytes", dropped},
            })));
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
    std::lock_guard<std::mutex> lock(state->mutex);
    try {
        const std::string text = so8t_fields(fields);
        if (!state->moved) {
            state->check(params.file);
        }
        if (state->moved || state->last.is_rotate || (params.max_size > 0 && state->size >= params.max_size)) {
            state->rotate(params);
        }
        const uint64_t size = state->size;
        const auto last     = state->last;
        try {
            state->write_line(params.file, event, text);
            if (durable || state->failed) {
                state->sync(params);
            }
        } catch (...) {
            state->torn   = true;
            state->size   = size;
            state->synced = std::min(state->synced, size);
            state->last   = last;
            if (::ftruncate(state->fd, size) == 0) { // else before the next line
                state->torn = false;
            }
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
    return entry{state->last.seq, state->last.hash};
}

common_json so8t_audit::text_record(const std::string & text, int32_t n_tokens) const {
    common_json record = common_json::object({
        {"n_tokens", n_tokens},
        {"n_bytes", text.size()},
        {"hmac", so8t_hmac_hex(state->key, text)},
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
    uint64_t size = 0;
    so8t_file file;
    {
        std::lock_guard<std::mutex> lock(state->mutex);
        size    = state->size;
        file.fd = ::fcntl(state->fd, F_DUPFD_CLOEXEC, 0); // reading must not keep answers waiting
    }
    if (file.fd < 0) {
        throw so8t_file_error("read", params.file);
    }
    uint64_t end     = 0;
    const auto found = so8t_last_lines(file.fd, params.file, size, n, end);

    common_json lines = common_json::array();
    for (const auto & line : found) {
        const common_json record = common_json::parse_no_throw(line);
        if (!record.is_discarded()) {
            lines.push_back(record);
        }
    }
    return lines;
}

#endif
