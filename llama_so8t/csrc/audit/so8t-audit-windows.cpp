#include "so8t-audit.h"

#include "json.h"

#include <stdexcept>

// Locks, syncs and renames of the log are POSIX's.

struct so8t_audit::impl {};

so8t_audit::so8t_audit(const so8t_audit_params &, const common_json &, const common_json &) {
    throw std::runtime_error("so8t: the audit log is not available on Windows");
}

so8t_audit::~so8t_audit() = default;

std::optional<so8t_audit::entry> so8t_audit::append(const char *, const common_json &, bool) {
    return {};
}

common_json so8t_audit::text_record(const std::string &) const {
    return nullptr;
}

common_json so8t_audit::text_record(const std::string &, int32_t) const {
    return nullptr;
}

so8t_audit::entry so8t_audit::last() const {
    return {};
}

bool so8t_audit::failed() const {
    return true;
}

common_json so8t_audit::tail(size_t) const {
    return nullptr;
}
