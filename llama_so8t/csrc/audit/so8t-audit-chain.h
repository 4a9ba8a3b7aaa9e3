#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

class common_json;

// The lines of an audit log: each has the hash of itself, and that of the line before (docs/audit.md, "Format").

// What a line tells. audit/records.py has the same list, and docs/audit.md the fields.
inline constexpr char SO8T_AUDIT_OPEN[]       = "open";       // a run of the server begins
inline constexpr char SO8T_AUDIT_REQUEST[]    = "request";    // a request was judged
inline constexpr char SO8T_AUDIT_ESCALATION[] = "escalation"; // a held answer was decided
inline constexpr char SO8T_AUDIT_ADAPTERS[]   = "adapters";   // the scales of LoRA adapters were changed
inline constexpr char SO8T_AUDIT_LOST[]       = "lost";       // records were dropped while the log could not be written
inline constexpr char SO8T_AUDIT_ROTATE[]     = "rotate";     // the log goes on in the next file
inline constexpr char SO8T_AUDIT_CLOSE[]      = "close";      // a run of the server ends

static const size_t SO8T_AUDIT_MAX_LINE  = 16 << 20; // bytes of a line that readers accept
static const size_t SO8T_AUDIT_HASH_SIZE = 64;       // hex digits

// the newest line of a chain, to which the next one is linked
struct so8t_audit_link {
    int64_t seq      = 0;
    std::string hash = std::string(SO8T_AUDIT_HASH_SIZE, '0');
    bool is_rotate   = false; // the chain goes on in another file
};

// Fields of a line as JSON, without texts, and then with fewer verdicts, if they were too long: digests and decision
// remain. Throws std::runtime_error: they are too long even so.
std::string so8t_audit_fields(const common_json & fields);

// the line after last, with its newline; last becomes its link
std::string so8t_audit_line(so8t_audit_link & last, const std::string & event, const std::string & fields);

// The link of a line without its newline. Throws so8t_audit_damaged(): it is not what its hash says.
so8t_audit_link so8t_audit_parse(const std::string & path, const std::string & line);

std::runtime_error so8t_audit_damaged(const std::string & path);
