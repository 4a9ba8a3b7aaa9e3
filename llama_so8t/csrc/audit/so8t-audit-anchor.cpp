#include "so8t-audit-anchor.h"

#include "so8t-file.h"
#include "so8t-hex.h"

#include "base64.hpp"
#include "common.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

namespace fs = std::filesystem;

static std::string so8t_anchor_origin(const std::string & log) {
    return "so8t-audit/" + fs::path(log).filename().string();
}

static std::string so8t_anchor_text(const std::string & log, const so8t_audit_link & last) {
    return so8t_anchor_origin(log) + "\n" + std::to_string(last.seq) + "\n" + base64::encode(so8t_unhex(last.hash)) +
           "\n\n";
}

void so8t_write_anchor(const std::string & path, const std::string & log, const so8t_audit_link & last) {
    const std::string incoming = so8t_write_beside(path, so8t_anchor_text(log, last), 0644);
    if (::rename(incoming.c_str(), path.c_str()) != 0) {
        throw so8t_file_error("replace", path);
    }
}

void so8t_check_anchor(const std::string & path, const std::string & log, const so8t_audit_link & last) {
    if (!fs::exists(path) || (fs::is_regular_file(path) && fs::is_empty(path))) {
        return;
    }
    std::string origin, seq, hash;
    if (fs::is_regular_file(path)) {
        std::ifstream file(path);
        std::getline(file, origin);
        std::getline(file, seq);
        std::getline(file, hash);
    }
    const std::string expected = so8t_anchor_origin(log);
    if (origin != expected || seq.empty() || seq.size() > 16 ||
        seq.find_first_not_of("0123456789") != std::string::npos) {
        throw std::runtime_error("so8t: '" + path + "' is not the checkpoint of '" + log +
                                 "' (its first line is not '" + expected + "'), so it is not written over");
    }
    const int64_t n = std::stoll(seq);
    if (n > last.seq || (n == last.seq && hash != base64::encode(so8t_unhex(last.hash)))) {
        throw std::runtime_error(string_format("so8t: '%s' ends at seq %lld with another line than its checkpoint "
                                               "'%s', which has seq %s: lines were cut off or written anew. "
                                               "The server does not go on with this log: move it away, with its "
                                               "rotated files and its checkpoint, to begin another",
            log.c_str(), (long long) last.seq, path.c_str(), seq.c_str()));
    }
}
