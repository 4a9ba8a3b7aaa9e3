#pragma once

#include <string>

// The key of the digests in an audit log: 64 hex digits in a file, which is made with mode 600 if it is missing.
// Returns 32 bytes. Throws std::runtime_error: the file cannot be made or read, or has something else in it.
std::string so8t_audit_key(const std::string & path);

// HMAC-SHA256 in hex; key: at most 64 bytes
std::string so8t_hmac_hex(const std::string & key, const std::string & text);
