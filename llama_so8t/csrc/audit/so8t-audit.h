#pragma once

#include "so8t-audit-chain.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

class common_json;

// The audit log of a server: one JSON object per line, each with the SHA-256 of itself and of the line before, so that
// what is changed, removed or inserted later is found (docs/audit.md has the format, `so8t audit verify` reads it).

struct so8t_audit_params {
    std::string file;            // empty: no log
    bool text = false;           // the texts themselves too, not only their keyed digests
    std::string key_file;        // of the digests; empty: file + ".key"; made if it is missing
    uint64_t max_size = 0;       // bytes at which a new file is begun, 0: never
    std::string checkpoint_file; // the anchor (so8t-audit-anchor.h), empty: none
};

class so8t_audit {
  public:
    struct entry {
        int64_t seq;
        std::string hash;
    };

    // Opens the log, or goes on with it after its last whole line: an unfinished one behind it, of a server that was
    // killed, is cut off, and its size is told in the line "open", which is written with the model and the policy.
    // Throws std::runtime_error: the log, the key or the anchor cannot be opened or written or is a link, another
    // process writes this log, its last line is not what its hash says, it ends before its anchor, the key is not
    // 64 hex digits.
    so8t_audit(const so8t_audit_params & params, const common_json & model, const common_json & policy);

    // with the line "close"
    ~so8t_audit();

    so8t_audit(const so8t_audit &)             = delete;
    so8t_audit & operator=(const so8t_audit &) = delete;

    // Appends a line; event: one of SO8T_AUDIT_*. durable: it is on the disk, with the anchor, when the call returns; others are within a
    // second. Nothing: it could not be written, and no part of it is left in the file; a later call may do better.
    // A line longer than readers accept is written without texts, and with as many verdicts as fit.
    std::optional<entry> append(const char * event, const common_json & fields, bool durable);

    // {"n_bytes", "hmac"}, and "text" if texts are kept; of a text of a model also "n_tokens"
    common_json text_record(const std::string & text) const;
    common_json text_record(const std::string & text, int32_t n_tokens) const;

    // the keyed digest of a text, as it is in its record
    std::string digest(const std::string & text) const;

    entry last() const;
    bool failed() const; // the newest line that was to be written could not be
    const std::string & path() const { return params.file; }

    // the newest lines of the current file, oldest first; at most n, fewer where they are very long
    common_json tail(size_t n) const;

  private:
    struct impl;

    so8t_audit_params params;
    std::unique_ptr<impl> state;
};
