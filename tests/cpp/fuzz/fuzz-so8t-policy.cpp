// A policy file, as a user or an attacker writes it.

#include "so8t-fuzz.h"

#include "so8t-policy-keys.h"
#include "so8t-policy-settings.h"

#include "json.h"

#include <fstream>
#include <stdexcept>

std::vector<std::string> so8t_fuzz_seeds() {
    return {
        R"({"mode": "enforce", "debounce": 2, "heads": {"safety": {"debounce": 3, "thresholds": {"unsafe": 0.9}}}})",
        R"({"holdback": 2, "on_refuse": "message", "refusal": "No.", "escalation": "Ask.", "think": "monitor"})",
        R"({"escalation_wait": 60, "heads": {}})",
        "safety/unsafe=0.9,authority/escalate=1",
        "{}",
        "",
    };
}

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const std::string path = so8t_fuzz_path("policy.json");
    std::ofstream(path, std::ios::binary).write((const char *) data, size);
    const so8t_policy_file file = so8t_policy_read(path);
    if (file.settings) {
        SO8T_FUZZ_CHECK(file.error.empty());
        file.settings->dump();
    } else {
        so8t_fuzz_check_error(file.error);
    }
    // the same bytes as the text of each flag
    const std::string text((const char *) data, size);
    for (const auto & key : so8t_policy_keys) {
        so8t_policy_params params;
        try {
            so8t_policy_set(params, key, text);
        } catch (const std::invalid_argument & error) {
            so8t_fuzz_check_error(error.what());
        }
    }
    return 0;
}
