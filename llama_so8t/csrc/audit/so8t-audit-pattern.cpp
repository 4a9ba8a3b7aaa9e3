#include "so8t-audit-pattern.h"

#include "common.h"

#include <cstdio>
#include <regex>
#include <stdexcept>

static const std::string SO8T_MODEL     = "{model}";
static const size_t SO8T_MAX_MODEL_NAME = 160; // bytes, so that names of files with it are no longer than 255

static bool so8t_has_model(const std::string & path) {
    return path.find(SO8T_MODEL) != std::string::npos;
}

void so8t_check_audit_pattern(const std::string & path) {
    static const std::regex braces("\\{[^{}/]*\\}");
    for (std::sregex_iterator it(path.begin(), path.end(), braces), end; it != end; ++it) {
        if (it->str() != SO8T_MODEL) {
            throw std::invalid_argument("so8t: '" + path + "': found " + it->str() + ", expected " + SO8T_MODEL);
        }
    }
}

bool so8t_is_audit_pattern(const so8t_audit_params & params) {
    const bool is_pattern = so8t_has_model(params.file);
    // FILE.1 and FILE.key of one model would be the log of another
    if (is_pattern && string_ends_with(params.file, SO8T_MODEL)) {
        throw std::invalid_argument("so8t: '" + params.file + "' ends with " + SO8T_MODEL +
                                    ", expected an ending behind it, as in '" + params.file + ".jsonl'");
    }
    if (is_pattern && !params.checkpoint_file.empty() && !so8t_has_model(params.checkpoint_file)) {
        throw std::invalid_argument("so8t: '" + params.checkpoint_file + "' would be the checkpoint of several logs '" +
                                    params.file + "': put " + SO8T_MODEL + " into its name, too");
    }
    return is_pattern;
}

// injective, and never "." or ".."
static std::string so8t_path_part(const std::string & name) {
    std::string result;
    for (const unsigned char c : name) {
        const bool is_plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' ||
                              c == '_' || (c == '.' && !result.empty());
        char escaped[4];
        std::snprintf(escaped, sizeof(escaped), "%%%02X", c);
        result += is_plain ? std::string(1, (char) c) : escaped;
    }
    if (result.empty() || result.size() > SO8T_MAX_MODEL_NAME) {
        throw std::invalid_argument(
            "so8t: the model has the name '" + name.substr(0, 200) +
            "', which cannot be a part of the name of its audit log: give it another (--alias)");
    }
    return result;
}

so8t_audit_params so8t_audit_of_model(so8t_audit_params params, const std::string & model) {
    if (!so8t_is_audit_pattern(params)) {
        return params;
    }
    const std::string part = so8t_path_part(model);
    for (std::string * path : {&params.file, &params.key_file, &params.checkpoint_file}) {
        for (size_t at = 0; (at = path->find(SO8T_MODEL, at)) != std::string::npos; at += part.size()) {
            path->replace(at, SO8T_MODEL.size(), part);
        }
    }
    return params;
}
