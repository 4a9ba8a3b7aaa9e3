#include "so8t-audit-files.h"

#include "so8t-file.h"

#include "common.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fs = std::filesystem;

static std::runtime_error so8t_written_by_another(const std::string & path) {
    return std::runtime_error("so8t: '" + path +
                              "' is written by another process; each server needs a log of its own: "
                              "put {model} into the name, as in 'audit-{model}.jsonl', or name another file");
}

// the last line of a file
static so8t_lines so8t_last_line(int fd, const std::string & path, uint64_t size) {
    return so8t_last_lines(fd, path, size, 1, 2 * SO8T_AUDIT_MAX_LINE);
}

// N of the newest file PATH.N, 0 if there is none
static int64_t so8t_newest_rotated(const std::string & path) {
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

// the last line of a file that a server left behind when it was killed between the steps of a rotation
static so8t_audit_link so8t_resume_rotated(const std::string & path) {
    const so8t_file file(path, O_RDONLY);
    if (file.fd < 0) {
        throw so8t_file_error("read", path);
    }
    if (::flock(file.fd, LOCK_SH | LOCK_NB) != 0) { // not killed, it is between the steps just now
        throw so8t_written_by_another(path);
    }
    const uint64_t size  = fs::file_size(path);
    const auto found     = so8t_last_line(file.fd, path, size);
    so8t_audit_link last = so8t_audit_parse(path, found.lines.empty() || found.end < size ? "" : found.lines.back());
    last.is_rotate       = false;
    return last;
}

so8t_audit_files::so8t_audit_files(const std::string & path) :
    path(path) {
    n_bytes = n_synced = open(false);
}

so8t_audit_files::~so8t_audit_files() {
    if (fd >= 0) {
        ::close(fd);
    }
}

// returns the size of the file
uint64_t so8t_audit_files::open(bool is_new) {
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
        throw errno != EWOULDBLOCK ? so8t_file_error("lock", path) : so8t_written_by_another(path);
    }
    if (!so8t_is_at(file.fd, path) || ::fstat(file.fd, &info) != 0) { // its writer rotated it before we had the lock
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

so8t_audit_link so8t_audit_files::resume(uint64_t & n_unfinished) {
    const auto found = so8t_last_line(fd, path, n_bytes);
    n_unfinished     = n_bytes - found.end;
    if (n_unfinished > SO8T_AUDIT_MAX_LINE || (found.lines.empty() && found.end > 0)) {
        throw so8t_audit_damaged(path);
    }
    so8t_audit_link last;
    if (!found.lines.empty()) {
        last = so8t_audit_parse(path, found.lines.back());
    } else if (const int64_t n = so8t_newest_rotated(path)) {
        last = so8t_resume_rotated(path + "." + std::to_string(n));
    }
    torn     = n_unfinished > 0;
    n_bytes -= n_unfinished;
    return last;
}

void so8t_audit_files::check() const {
    if (!so8t_is_at(fd, path)) {
        throw std::runtime_error("so8t: '" + path + "' was moved or removed while the server writes it");
    }
    struct stat info;
    if (::fstat(fd, &info) != 0) {
        throw so8t_file_error("read", path);
    }
    if ((uint64_t) info.st_size < n_bytes || ((uint64_t) info.st_size > n_bytes && !torn)) {
        throw std::runtime_error(
            string_format("so8t: '%s' has %lld bytes, the server wrote %llu: somebody else shortened it or wrote to it",
                path.c_str(), (long long) info.st_size, (unsigned long long) n_bytes));
    }
}

void so8t_audit_files::append(const std::string & line) {
    cut();
    torn = true;
    so8t_write(fd, path, n_bytes, line);
    torn     = false;
    n_bytes += line.size();
}

void so8t_audit_files::cut() {
    if (torn && ::ftruncate(fd, n_bytes) != 0) {
        throw so8t_file_error("truncate", path);
    }
    torn = false;
}

void so8t_audit_files::undo(uint64_t size) {
    n_bytes  = size;
    n_synced = std::min(n_synced, size);
    torn     = ::ftruncate(fd, size) != 0; // else before the next line
}

void so8t_audit_files::sync() {
    if (unsure && n_bytes > n_synced) {
        // after a failed sync the kernel takes pages for written that are not, so they are written again
        so8t_write(fd, path, n_synced, so8t_read(fd, path, n_synced, n_bytes - n_synced));
    }
    unsure = true;
    so8t_sync(fd, path);
    unsure   = false;
    n_synced = n_bytes;
}

void so8t_audit_files::move_away() {
    const std::string rotated = path + "." + std::to_string(so8t_newest_rotated(path) + 1);
    if (::rename(path.c_str(), rotated.c_str()) != 0) {
        throw so8t_file_error("rename", path);
    }
    moved = true;
}

void so8t_audit_files::begin_new() {
    n_bytes  = open(true);
    n_synced = 0;
    moved    = false;
}
