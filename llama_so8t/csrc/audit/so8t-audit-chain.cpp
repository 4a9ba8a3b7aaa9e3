#include "so8t-audit-chain.h"

#include "common.h"
#include "hash/hash.h"
#include "json.h"

#include <chrono>
#include <ctime>

static const size_t SO8T_MAX_FIELDS = SO8T_AUDIT_MAX_LINE - 1024; // bytes of a line
static const int64_t SO8T_MAX_SEQ   = (int64_t) 1 << 53;          // exact in every JSON reader

static std::string so8t_sha256_hex(const std::string & text) {
    return hash_sha256_hex(text.data(), text.size());
}

static std::string so8t_now() {
    const auto now            = std::chrono::system_clock::now();
    const auto ms             = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
    const std::time_t seconds = ms / 1000;

    struct tm utc;
    char text[32];
    std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", gmtime_r(&seconds, &utc));
    return string_format("%s.%03dZ", text, (int) (ms % 1000));
}

// what is left of a list that is too long by n_over bytes: its first items, or the last ones
static common_json so8t_shortened(const common_json & list, size_t n_over, bool keep_last) {
    size_t n_kept = list.size();
    for (size_t n_cut = 0; n_kept > 0 && n_cut < n_over; --n_kept) {
        n_cut += list.at(keep_last ? list.size() - n_kept : n_kept - 1).dump_safe().size() + 1; // and a comma
    }
    common_json kept   = common_json::array();
    const size_t first = keep_last ? list.size() - n_kept : 0;
    for (size_t i = 0; i < n_kept; ++i) {
        kept.push_back(list.at(first + i));
    }
    return kept;
}

std::string so8t_audit_fields(const common_json & fields) {
    std::string text = fields.dump_safe();
    if (text.size() <= SO8T_MAX_FIELDS) {
        return text;
    }
    common_json shorter = fields;
    for (const char * part : {"prompt", "answer"}) {
        if (shorter.contains(part)) {
            shorter.at(part).erase("text");
        }
    }
    text = shorter.dump_safe();
    for (const std::string list : {"messages", "verdicts"}) { // the newest message, and the first verdicts, say most
        if (text.size() > SO8T_MAX_FIELDS && fields.contains(list)) {
            const size_t n_over        = text.size() - SO8T_MAX_FIELDS + 64;
            shorter[list]              = so8t_shortened(fields.at(list), n_over, list == "messages");
            shorter[list + "_omitted"] = fields.at(list).size() - shorter.at(list).size();
            text                       = shorter.dump_safe();
        }
    }
    if (text.size() > SO8T_MAX_FIELDS) {
        throw std::runtime_error(
            string_format("so8t: an audit line of %zu bytes is longer than readers accept", text.size()));
    }
    return text;
}

std::string so8t_audit_line(so8t_audit_link & last, const std::string & event, const std::string & fields) {
    std::string line = string_format(
        "{\"seq\":%lld,\"time\":\"%s\",\"event\":\"%s\"", (long long) last.seq + 1, so8t_now().c_str(), event.c_str());
    if (fields.size() > 2) {
        line += "," + fields.substr(1, fields.size() - 2);
    }
    line += ",\"prev\":\"" + last.hash + "\"";
    last  = {last.seq + 1, so8t_sha256_hex(line), event == SO8T_AUDIT_ROTATE};
    return line + ",\"hash\":\"" + last.hash + "\"}\n";
}

std::runtime_error so8t_audit_damaged(const std::string & path) {
    return std::runtime_error("so8t: '" + path +
                              "': the last line is not what its hash says; `so8t audit verify` tells more. "
                              "The server does not go on with this log: move it away, with its rotated files and its "
                              "checkpoint, to begin another");
}

so8t_audit_link so8t_audit_parse(const std::string & path, const std::string & line) {
    static const std::string mark = ",\"hash\":\"";

    const size_t n_tail      = mark.size() + SO8T_AUDIT_HASH_SIZE + 2;
    const common_json record = common_json::parse_no_throw(line);
    if (line.size() > n_tail && !record.is_discarded() && record.is_object() && record.contains("seq") &&
        record.at("seq").is_number_integer() && record.contains("event")) {
        const std::string hash = so8t_sha256_hex(line.substr(0, line.size() - n_tail));
        const int64_t seq      = record.at("seq").get<int64_t>();
        if (line.compare(line.size() - n_tail, n_tail, mark + hash + "\"}") == 0 && seq > 0 && seq < SO8T_MAX_SEQ) {
            return {seq, hash, record.at("event") == SO8T_AUDIT_ROTATE};
        }
    }
    throw so8t_audit_damaged(path);
}
