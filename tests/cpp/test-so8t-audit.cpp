// The audit log where no request gets it: killed at every system call, each of them failing once, no room for a line,
// lines longer than readers accept.

#include "so8t-audit.h"

#include "json.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace fs = std::filesystem;

static int n_passed = 0;
static int n_failed = 0;

#define CHECK(x)                                                                                                       \
    do {                                                                                                               \
        if (x) {                                                                                                       \
            n_passed++;                                                                                                \
        } else {                                                                                                       \
            n_failed++;                                                                                                \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x);                                            \
        }                                                                                                              \
    } while (0)

static std::vector<std::string> read_lines(const std::string & path) {
    std::vector<std::string> lines;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        lines.push_back(line);
    }
    return lines;
}

//
// system calls that fail: these functions take the place of those of the C library, for the log too
//

static const int SO8T_NOT_RESUMED = 3; // exit code: after the failed call, more than one line could not be written

static std::atomic<int> n_calls = 0;
static int i_failed             = 0; // the call that fails, counted from 1
static bool is_kill             = false;

static bool fails() {
    if (i_failed == 0 || ++n_calls != i_failed) {
        return false;
    }
    if (is_kill) {
        raise(SIGKILL);
    }
    errno = EIO;
    return true;
}

extern "C" {
ssize_t pwrite(int fd, const void * data, size_t size, off_t offset) {
    if (fails()) {
        return -1;
    }
    // in several calls, so that a line can end in the middle
    return syscall(SYS_pwrite64, fd, data, size < 4096 ? std::min<size_t>(size, 500) : size, offset);
}
int open(const char * path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(args, int) : 0;
    va_end(args);
    return strstr(path, "/crash/") && fails() ? -1 : syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
int fsync(int) {
    return fails() ? -1 : 0;
} // no machine loses its power here
int ftruncate(int fd, off_t size) noexcept {
    return fails() ? -1 : syscall(SYS_ftruncate, fd, size);
}
int rename(const char * a, const char * b) noexcept {
    return fails() ? -1 : syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 0);
}
int link(const char * a, const char * b) noexcept {
    return fails() ? -1 : syscall(SYS_linkat, AT_FDCWD, a, AT_FDCWD, b, 0);
}
int unlink(const char * a) noexcept {
    return fails() ? -1 : syscall(SYS_unlinkat, AT_FDCWD, a, 0);
}
}

// in a process of its own; returns how it ended
static int in_child(const std::function<void()> & run) {
    const pid_t pid = fork();
    if (pid == 0) {
        int status = 0;
        try {
            run();
        } catch (const std::exception &) {
            status = 2;
        }
        _exit(status);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    return status;
}

// one chain over all files, and the lines of which the writer was told are in it
static bool is_whole(const std::string & path, const std::string & told) {
    std::vector<std::string> lines;
    for (int i = 1; fs::exists(path + "." + std::to_string(i)); ++i) {
        const auto more      = read_lines(path + "." + std::to_string(i));
        const auto is_rotate = [](const std::string & line) {
            return line.find("\"event\":\"rotate\"") != std::string::npos;
        };
        if (more.empty() || !is_rotate(more.back()) || std::count_if(more.begin(), more.end(), is_rotate) != 1) {
            return false;
        }
        lines.insert(lines.end(), more.begin(), more.end());
    }
    const auto current = read_lines(path);
    lines.insert(lines.end(), current.begin(), current.end());

    std::map<std::string, bool> hashes;
    std::string last(64, '0');
    int64_t seq = 0;
    for (const auto & line : lines) {
        const common_json record = common_json::parse_no_throw(line);
        if (record.is_discarded() || record.at("seq").get<int64_t>() != ++seq ||
            record.at("prev").get<std::string>() != last) {
            return false;
        }
        last         = record.at("hash").get<std::string>();
        hashes[last] = true;
    }
    for (const auto & hash : read_lines(told)) {
        if (hashes.count(hash) == 0) {
            return false;
        }
    }
    return seq > 0;
}

static common_json request(size_t n_text, size_t n_verdicts) {
    common_json verdicts = common_json::array();
    for (size_t i = 0; i < n_verdicts; ++i) {
        verdicts.push_back(
            {{"part", "answer"}, {"position", i}, {"head", "safety"}, {"label", i % 2 ? "safe" : "unsafe"}});
    }
    return common_json::object({
        {"request", "r"},
        {"prompt", {{"n_bytes", n_text}, {"text", std::string(n_text, 'x')}}},
        {"answer", {{"n_bytes", n_text}, {"text", std::string(n_text, 'y')}}},
        {"verdicts", verdicts},
        {"decision", "refuse"},
    });
}

// a client decides how many messages there are: the newest are kept, and all verdicts
static void test_many_messages(const so8t_audit_params & params) {
    const size_t n_messages = 400000;
    common_json fields      = request(10, 1000);
    fields["messages"]      = common_json::array();
    for (size_t i = 0; i < n_messages; ++i) {
        fields["messages"].push_back({{"role", "user"}, {"n_bytes", i}, {"hmac", "0123456789abcdef"}});
    }
    so8t_audit audit(params, nullptr, nullptr);
    CHECK(audit.append("request", fields, false));

    const std::string line = read_lines(params.file).back();
    const common_json cut  = common_json::parse(line);
    const size_t n_kept    = cut.at("messages").size();
    CHECK(line.size() < 16 << 20 && line.size() > (16 << 20) - 4096); // as many as fit
    CHECK(cut.at("verdicts").size() == 1000 && !cut.contains("verdicts_omitted"));
    CHECK(n_kept + cut.at("messages_omitted").get<size_t>() == n_messages);
    CHECK(n_kept > 100000 && cut.at("messages").at(n_kept - 1).at("n_bytes").get<size_t>() == n_messages - 1);
}

// no file of this process grows beyond n bytes
static void limit(rlim_t n) {
    rlimit values;
    getrlimit(RLIMIT_FSIZE, &values);
    values.rlim_cur = n;
    setrlimit(RLIMIT_FSIZE, &values);
}

static void test_long_lines(const so8t_audit_params & params) {
    const size_t n_max = 16 << 20;
    so8t_audit audit(params, nullptr, nullptr);

    CHECK(audit.append("request", request(1 << 20, 2), false));
    CHECK(audit.append("request", request(9 << 20, 2), false));
    CHECK(audit.append("request", request(1 << 20, 400000), false));
    CHECK(audit.append("request", common_json::object(), true));
    CHECK(!audit.append("request", common_json::object({{"request", std::string(n_max, 'x')}}), true));
    CHECK(audit.failed());
    CHECK(audit.append("request", common_json::object(), true));
    CHECK(!audit.failed());

    const auto lines = read_lines(params.file);
    CHECK(lines.size() == 6);
    for (const auto & line : lines) {
        CHECK(line.size() < n_max);
    }
    const common_json texts    = common_json::parse(lines.at(1));
    const common_json no_texts = common_json::parse(lines.at(2));
    const common_json cut      = common_json::parse(lines.at(3));
    CHECK(texts.at("prompt").contains("text") && texts.at("answer").contains("text"));
    CHECK(!no_texts.at("prompt").contains("text") && no_texts.at("prompt").at("n_bytes").get<size_t>() == 9 << 20);
    CHECK(no_texts.at("verdicts").size() == 2 && !no_texts.contains("verdicts_omitted"));
    CHECK(cut.at("decision") == "refuse" && cut.at("verdicts").size() > 100000);
    CHECK(cut.at("verdicts").size() + cut.at("verdicts_omitted").get<size_t>() == 400000);
    CHECK(lines.at(3).size() > n_max - 4096); // as many as fit

    CHECK(audit.tail(2).size() == 2);
    CHECK(audit.tail(1000).size() >= 3);
}

// a limit at every byte of a line and of the checkpoint: nothing of the line is left, and the next one follows
static void test_partial_writes(const so8t_audit_params & params) {
    so8t_audit audit(params, nullptr, nullptr);
    auto last = audit.append("request", request(10, 2), true);
    CHECK(last.has_value());
    const uint64_t size = fs::file_size(params.file);
    const size_t n_line = read_lines(params.file).back().size() + 1;
    for (uint64_t n = size; n < size + n_line; n += 7) {
        limit(n);
        CHECK(!audit.append("request", request(10, 2), true));
        limit(RLIM_INFINITY);
        CHECK(fs::file_size(params.file) == size);
        CHECK(audit.last().hash == last->hash);
    }
    last = audit.append("request", request(10, 2), true);
    CHECK(last.has_value() && last->seq == audit.last().seq);
}

// a rotation that cannot write its last line is done later
static void test_failing_rotation(so8t_audit_params params) {
    params.max_size = fs::file_size(params.file);
    so8t_audit audit(params, nullptr, nullptr);
    limit(fs::file_size(params.file) + 20);
    CHECK(!audit.append("request", request(10, 2), true));
    limit(RLIM_INFINITY);
    CHECK(!fs::exists(params.file + ".1"));

    const auto last = audit.append("request", request(10, 2), true);
    CHECK(last.has_value());
    CHECK(fs::exists(params.file + ".1"));
    CHECK(read_lines(params.file).size() == 1);
}

// killed before each system call, or each of them fails once; then the next process goes on
static int test_crashes(const std::string & folder, bool kill) {
    for (int i = 1; i < 1000; ++i) {
        so8t_audit_params params;
        params.file            = folder + "/crash/audit.jsonl";
        params.checkpoint_file = folder + "/crash/note";
        params.max_size        = 3000;
        const std::string told = folder + "/crash/told";
        fs::remove_all(folder + "/crash");
        fs::create_directory(folder + "/crash");

        const int status = in_child([&]() {
            i_failed = i;
            is_kill  = kill;
            so8t_audit audit(params, nullptr, nullptr);
            FILE * file   = fopen(told.c_str(), "w");
            int n_refused = 0;
            for (int j = 0; j < 12; ++j) {
                const auto entry = audit.append("request", request(200, 1), j % 2 == 0);
                if (entry) {
                    fprintf(file, "%s\n", entry->hash.c_str());
                    fflush(file);
                }
                n_refused += !entry;
            }
            if (n_refused > 1) {
                _exit(SO8T_NOT_RESUMED);
            }
            if (!kill && n_calls < i) {
                raise(SIGTERM); // it has no call of this number
            }
        });
        if (WIFEXITED(status) ? kill && WEXITSTATUS(status) == 0 : WTERMSIG(status) == SIGTERM) {
            return i - 1;
        }
        CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != SO8T_NOT_RESUMED);
        const int next = in_child([&]() {
            so8t_audit audit(params, nullptr, nullptr);
            if (!audit.append("request", request(10, 1), true)) {
                throw std::runtime_error("not written");
            }
        });
        if (next != 0 || !is_whole(params.file, told)) {
            fprintf(stderr, "call %d %s: the next process ended with %d\n", i, kill ? "killed" : "failed", next);
        }
        CHECK(next == 0);
        CHECK(is_whole(params.file, told));
    }
    return 0;
}

int main() {
    std::string folder = (fs::temp_directory_path() / "test-so8t-audit-XXXXXX").string();
    if (!mkdtemp(folder.data())) {
        perror("mkdtemp");
        return 1;
    }
    // first: a process that has logged has threads that a child has not
    const int n_kills  = test_crashes(folder, true);
    const int n_errors = test_crashes(folder, false);
    CHECK(n_kills > 50 && n_errors > 50);
    printf("killed at %d calls, %d failed\n", n_kills, n_errors);
    fflush(stdout);

    so8t_audit_params params;
    params.text            = true;
    params.file            = folder + "/long.jsonl";
    params.checkpoint_file = folder + "/note";
    test_long_lines(params);

    params.file            = folder + "/many.jsonl";
    params.checkpoint_file = folder + "/many-note";
    test_many_messages(params);

    params.file            = folder + "/short.jsonl";
    params.checkpoint_file = folder + "/short-note";
    test_partial_writes(params);
    test_failing_rotation(params);

    fs::remove_all(folder);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
