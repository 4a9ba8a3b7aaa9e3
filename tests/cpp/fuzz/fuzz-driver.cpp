// What libFuzzer does, for compilers without it: a target gets its seeds, changed at random. The same seed gives the same
// inputs. The names of the options are libFuzzer's.
//
//   fuzz-so8t-NAME [-runs=N] [-max_total_time=SECONDS] [-seed=N] [FILE ...]
//
// An input that ends the program stays in the file fuzz-so8t-NAME.input; given as FILE it is run again.

#include "so8t-fuzz.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include <sys/resource.h>
#include <unistd.h>

static const unsigned SO8T_MAX_SECONDS = 60;      // of one input, also on a slow machine with other work
static const long SO8T_MAX_KB          = 1 << 20; // memory that the process grows by, with its inputs of a few kB
static const size_t SO8T_MAX_SIZE      = 1 << 16; // of an input

static std::string so8t_input_file; // has the input that is run

static const char so8t_hint[] = "\nthe input is kept; its file is the last argument of this program\n";

static void so8t_end(int number) {
    // nothing but write() is safe here
    (void) !write(STDERR_FILENO, so8t_hint, sizeof(so8t_hint) - 1);
    (void) !write(STDERR_FILENO, so8t_input_file.data(), so8t_input_file.size());
    (void) !write(STDERR_FILENO, "\n", 1);
    signal(number, SIG_DFL);
    raise(number);
}

using so8t_random = std::mt19937_64;

static size_t so8t_below(so8t_random & random, size_t n) {
    return n == 0 ? 0 : random() % n;
}

static void so8t_change(std::string & data, const std::vector<std::string> & seeds, so8t_random & random) {
    static const uint64_t numbers[] = {
        0, 1, 7, 8, 127, 128, 255, 4096, 4097, 65535, INT32_MAX, 1ull << 31, UINT32_MAX, INT64_MAX, UINT64_MAX};

    const size_t at     = so8t_below(random, data.size() + 1);
    const size_t length = 1 + so8t_below(random, so8t_below(random, 8) == 0 ? 256 : 8);
    switch (so8t_below(random, 8)) {
        case 0:
            if (at < data.size()) {
                data[at] = (char) (data[at] ^ (1 << so8t_below(random, 8)));
            }
            break;
        case 1:
            if (at < data.size()) {
                data[at] = (char) random();
            }
            break;
        case 2: {
            const uint64_t number = numbers[so8t_below(random, std::size(numbers))];
            const size_t size     = std::min<size_t>(data.size() - at, (size_t) 1 << so8t_below(random, 4));
            memcpy(&data[at], &number, size);
            break;
        }
        case 3: data.erase(at, length); break;
        case 4: data.insert(at, data.substr(so8t_below(random, data.size() + 1), length)); break;
        case 5: {
            std::string bytes(length, '\0');
            std::generate(bytes.begin(), bytes.end(), [&] { return (char) random(); });
            data.insert(at, bytes);
            break;
        }
        case 6: data.resize(at); break;
        case 7: {
            const auto & other = seeds[so8t_below(random, seeds.size())];
            data               = data.substr(0, at) + other.substr(so8t_below(random, other.size() + 1));
            break;
        }
    }
    data.resize(std::min(data.size(), SO8T_MAX_SIZE));
}

static long so8t_peak_kb() {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

static void so8t_run(const std::string & data, long start_kb) {
    std::ofstream(so8t_input_file, std::ios::binary) << data;
    alarm(SO8T_MAX_SECONDS);
    LLVMFuzzerTestOneInput((const uint8_t *) data.data(), data.size());
    alarm(0);
    SO8T_FUZZ_CHECK(so8t_peak_kb() - start_kb <= SO8T_MAX_KB);
}

int main(int argc, char ** argv) {
    uint64_t runs = UINT64_MAX;
    double time   = 1e9;
    uint64_t seed = 1;
    std::vector<std::string> files;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        const auto value       = [&](const char * name) { return word.compare(0, strlen(name), name) == 0; };
        if (value("-runs=")) {
            runs = strtoull(argv[i] + 6, nullptr, 10);
        } else if (value("-max_total_time=")) {
            time = strtod(argv[i] + 16, nullptr);
        } else if (value("-seed=")) {
            seed = strtoull(argv[i] + 6, nullptr, 10);
        } else {
            files.push_back(word);
        }
    }
    so8t_input_file = std::string(argv[0]) + ".input";
    for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM}) {
        signal(number, so8t_end);
    }
    const auto seeds = so8t_fuzz_seeds();
    LLVMFuzzerTestOneInput((const uint8_t *) seeds[0].data(), seeds[0].size()); // so that what is made once is there
    const long start_kb = so8t_peak_kb();

    for (const auto & file : files) {
        std::ifstream in(file, std::ios::binary);
        so8t_run(std::string(std::istreambuf_iterator<char>(in), {}), start_kb);
    }
    uint64_t n_runs  = 0;
    const auto start = std::chrono::steady_clock::now();
    const auto spent = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
    if (files.empty()) {
        for (const auto & data : seeds) {
            so8t_run(data, start_kb);
        }
        so8t_random random(seed);
        for (; n_runs < runs && spent() < time; ++n_runs) {
            std::string data = seeds[so8t_below(random, seeds.size())];
            for (size_t n = 1 + so8t_below(random, 5); n > 0; --n) {
                so8t_change(data, seeds, random);
            }
            so8t_run(data, start_kb);
        }
    }
    unlink(so8t_input_file.c_str());
    printf("%s: %zu seeds and %llu inputs, %.0f a second, no defect\n", argv[0], files.empty() ? seeds.size() : 0,
        (unsigned long long) n_runs, n_runs / spent());
    return 0;
}
