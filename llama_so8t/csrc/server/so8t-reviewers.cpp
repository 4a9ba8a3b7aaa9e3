#include "so8t-reviewers.h"

#include "so8t-hex.h"
#include "so8t-sha256.h"

#include "common.h"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <stdexcept>

static const size_t SO8T_MAX_FILE   = 1 << 20;
static const size_t SO8T_MAX_NAME   = 256;
static const size_t SO8T_HEX_DIGITS = 64;

so8t_reviewers::so8t_reviewers(const std::string & path) :
    path(path) {
    read();
}

std::vector<so8t_reviewers::reviewer> so8t_reviewers::read() const {
    std::ifstream file(path, std::ios::binary);
    std::string text(SO8T_MAX_FILE + 1, '\0');
    file.read(&text[0], text.size());
    text.resize(file.gcount());
    if (!file.is_open() || file.bad() || text.size() > SO8T_MAX_FILE) {
        throw std::runtime_error(
            "so8t: --so8t-reviewers: cannot read '" + path + "', expected a file of at most 1 MiB");
    }
    std::vector<reviewer> reviewers;
    int n_line = 0;
    for (const auto & line : string_split<std::string>(text, '\n')) {
        n_line++;
        const std::string stripped = string_strip(line);
        if (stripped.empty() || stripped[0] == '#') {
            continue;
        }
        const size_t n_digits  = std::min(stripped.find_first_of(" \t"), stripped.size());
        const std::string hash = stripped.substr(0, n_digits);
        const std::string name = string_strip(stripped.substr(n_digits));

        const bool is_hash = hash.size() == SO8T_HEX_DIGITS &&
                             hash.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos;
        const bool is_name = !name.empty() && name.size() <= SO8T_MAX_NAME &&
                             std::none_of(name.begin(), name.end(), [](unsigned char c) { return std::iscntrl(c); });
        if (!is_hash || !is_name) {
            throw std::runtime_error(string_format(
                "so8t: --so8t-reviewers: '%s': line %d is not of the form SHA256 NAME, with the 64 hex digits of the "
                "hash of a key and a name of at most %zu bytes (`so8t audit add-reviewer` makes such lines)",
                path.c_str(), n_line, SO8T_MAX_NAME));
        }
        reviewers.push_back({so8t_hex(so8t_unhex(hash)), name});
    }
    return reviewers;
}

std::string so8t_reviewers::name_of(const std::string & key) const {
    const std::string sha256 = so8t_hex(so8t_sha256().update(key).final()); // its comparison tells nothing of the key
    for (const auto & reviewer : read()) {
        if (!key.empty() && reviewer.sha256 == sha256) {
            return reviewer.name;
        }
    }
    return "";
}
