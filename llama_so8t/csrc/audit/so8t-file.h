#pragma once

#include <sys/types.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// POSIX files, for a log that must be on the disk. Functions throw std::runtime_error with the path and what the system
// says; path is for that message, where a descriptor is given too.

// closes a file at the end of a scope
struct so8t_file {
    int fd = -1; // -1: could not be opened

    so8t_file() = default;
    so8t_file(const std::string & path, int flags, mode_t mode = 0); // a symbolic link is not opened
    ~so8t_file();

    so8t_file(const so8t_file &)             = delete;
    so8t_file & operator=(const so8t_file &) = delete;

    int release(); // the descriptor, which the caller closes
};

// "so8t: cannot WHAT 'PATH': " and what errno says
std::runtime_error so8t_file_error(const char * what, const std::string & path);

// whether path names the open file, and is no link to it
bool so8t_is_at(int fd, const std::string & path);

void so8t_write(int fd, const std::string & path, uint64_t offset, const std::string & data);
std::string so8t_read(int fd, const std::string & path, uint64_t offset, size_t size);
void so8t_sync(int fd, const std::string & path);

// a new name in a directory is on the disk only when the directory is; not every file system can do it
void so8t_sync_directory(const std::string & path);

// writes a whole file PATH.tmp to the disk and returns its name; the caller renames it
std::string so8t_write_beside(const std::string & path, const std::string & data, mode_t mode);

struct so8t_lines {
    std::vector<std::string> lines; // oldest first
    uint64_t end;                   // of the last one, behind its newline
};

// the last n whole lines of the first size bytes of a file; fewer if max_bytes, or somewhat more, do not hold them
so8t_lines so8t_last_lines(int fd, const std::string & path, uint64_t size, size_t n, size_t max_bytes);
