#pragma once

#include "so8t-audit-chain.h"

#include <string>

// The anchor of an audit log: a note of the seq and hash of its newest line, to be kept out of reach of whoever writes
// the log. Users know it as a checkpoint (--so8t-audit-checkpoint, C2SP); here that word is for model directories.

// replaces the note at path, on the disk; throws std::runtime_error
void so8t_write_anchor(const std::string & path, const std::string & log, const so8t_audit_link & last);

// Throws std::runtime_error: the log ends before its anchor, so it has lost lines since, or has another line there, so
// it is another log; or path is something else. Nothing at path, or an empty file, is no anchor yet.
void so8t_check_anchor(const std::string & path, const std::string & log, const so8t_audit_link & last);
