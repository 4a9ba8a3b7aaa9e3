#include "so8t-file.h"

#include "common.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fs = std::filesystem;

static const size_t SO8T_BLOCK = 64 << 10;

std::runtime_error so8t_file_error(const char * what, const std::string & path) {
    return std::runtime_error(string_format("so8t: cannot %s '%s': %s", what, path.c_str(), std::strerror(errno)));
}

so8t_file::so8t_file(const std::string & path, int flags, mode_t mode) :
    fd( // no link: who can make one in this folder could have another file written
        ::open(path.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, mode)) {}

so8t_file::~so8t_file() {
    if (fd >= 0) {
        ::close(fd);
    }
}

int so8t_file::release() {
    const int result = fd;
    fd               = -1;
    return result;
}

bool so8t_is_at(int fd, const std::string & path) {
    struct stat ours, there;
    return ::fstat(fd, &ours) == 0 && ::lstat(path.c_str(), &there) == 0 && ours.st_ino == there.st_ino &&
           ours.st_dev == there.st_dev;
}

void so8t_write(int fd, const std::string & path, uint64_t offset, const std::string & data) {
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

std::string so8t_read(int fd, const std::string & path, uint64_t offset, size_t size) {
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

void so8t_sync(int fd, const std::string & path) {
    if (::fsync(fd) != 0) {
        throw so8t_file_error("sync", path);
    }
}

void so8t_sync_directory(const std::string & path) {
    const fs::path parent = fs::absolute(path).parent_path();
    const int fd          = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        ::fsync(fd);
        ::close(fd);
    }
}

std::string so8t_write_beside(const std::string & path, const std::string & data, mode_t mode) {
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

so8t_lines so8t_last_lines(int fd, const std::string & path, uint64_t size, size_t n, size_t max_bytes) {
    std::string data;
    uint64_t begin = size;
    while (begin > 0 && data.size() < max_bytes && (size_t) std::count(data.begin(), data.end(), '\n') <= n) {
        const size_t n_more  = std::min<uint64_t>(std::max(SO8T_BLOCK, data.size()), begin);
        begin               -= n_more;
        data                 = so8t_read(fd, path, begin, n_more) + data;
    }
    const size_t n_whole = data.rfind('\n') + 1; // 0 without a newline

    std::vector<std::string> lines;
    for (size_t at = 0; at < n_whole;) {
        const size_t newline = data.find('\n', at);
        if (at > 0 || begin == 0) { // else the line begins before what was read
            lines.push_back(data.substr(at, newline - at));
        }
        at = newline + 1;
    }
    lines.erase(lines.begin(), lines.end() - std::min(n, lines.size()));
    return {lines, begin + n_whole};
}
