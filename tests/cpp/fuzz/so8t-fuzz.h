#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// A target defines both. libFuzzer calls the first one; without it fuzz-driver.cpp does, with the seeds of the second one
// changed at random.

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

std::vector<std::string> so8t_fuzz_seeds();

// ends the program where something that must hold does not
#define SO8T_FUZZ_CHECK(x)                                                                                             \
    do {                                                                                                               \
        if (!(x)) {                                                                                                    \
            so8t_fuzz_failed(__FILE__, __LINE__, #x);                                                                  \
        }                                                                                                              \
    } while (0)

[[noreturn]] void so8t_fuzz_failed(const char * file, int line, const char * what);

// a file of this process in memory, where the system has such a folder
std::string so8t_fuzz_path(const char * name);

// fails where the text of an error is empty or has several lines
void so8t_fuzz_check_error(const std::string & what);
