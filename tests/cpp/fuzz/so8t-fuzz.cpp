#include "so8t-fuzz.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include <unistd.h>

void so8t_fuzz_failed(const char * file, int line, const char * what) {
    fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
    abort();
}

std::string so8t_fuzz_path(const char * name) {
    static const std::string & folder = *new std::string([] { // never freed: atexit() needs it
        const bool has_memory    = access("/dev/shm", W_OK) == 0;
        const std::string parent = has_memory ? "/dev/shm" : std::filesystem::temp_directory_path().string();
        const std::string path   = parent + "/so8t-fuzz-" + std::to_string(getpid());
        std::filesystem::create_directory(path);
        atexit([] { std::filesystem::remove_all(std::filesystem::path(so8t_fuzz_path("")).parent_path()); });
        return path;
    }());
    return folder + "/" + name;
}

void so8t_fuzz_check_error(const std::string & what) {
    if (what.empty() || what.find('\n') != std::string::npos) {
        fprintf(stderr, "an error of no line or of several: '%s'\n", what.c_str());
        abort();
    }
}
