// The end of a log that llama-server finds when it starts: it goes on after the last whole line, or refuses the log.

#include "so8t-fuzz.h"

#include "so8t-audit.h"

#include "json.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace fs = std::filesystem;

static so8t_audit_params params() {
    so8t_audit_params result;
    result.file            = so8t_fuzz_path("audit.jsonl");
    result.key_file        = so8t_fuzz_path("key");
    result.checkpoint_file = so8t_fuzz_path("anchor");
    return result;
}

static const common_json & model() {
    static const common_json value = {{"architecture", "so8t"}, {"name", "tiny"}, {"sha256", std::string(64, '0')}};
    return value;
}

static std::string read(const std::string & path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
}

std::vector<std::string> so8t_fuzz_seeds() {
    static const std::vector<std::string> seeds = [] {
        fs::remove(params().file);
        fs::remove(params().checkpoint_file);
        {
            so8t_audit log(params(), model(), common_json{{"policy", "monitor"}});
            log.append(SO8T_AUDIT_REQUEST, common_json{{"request", "r1"}}, false);
        }
        const std::string whole = read(params().file);
        return std::vector<std::string>{whole, whole.substr(0, whole.size() - 30),
            whole.substr(0, whole.find('\n') + 1), std::string(20000, 'x') + "\n", std::string(20000, '\n'), ""};
    }();
    return seeds;
}

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fs::remove(params().checkpoint_file); // of another log
    std::ofstream(params().file, std::ios::binary).write((const char *) data, size);
    try {
        so8t_audit log(params(), model(), common_json{{"policy", "monitor"}});
        log.tail(100).dump();
        SO8T_FUZZ_CHECK(log.append(SO8T_AUDIT_REQUEST, common_json{{"request", "r2"}}, true).has_value());
    } catch (const std::runtime_error & error) {
        so8t_fuzz_check_error(error.what());
        SO8T_FUZZ_CHECK(read(params().file) == std::string((const char *) data, size)); // what was refused is untouched
        return 0;
    }
    // what was begun goes on
    so8t_audit log(params(), model(), common_json{{"policy", "monitor"}});
    SO8T_FUZZ_CHECK(log.tail(3).size() == 3);
    return 0;
}
