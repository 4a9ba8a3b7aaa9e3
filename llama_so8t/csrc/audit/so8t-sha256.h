#pragma once

extern "C" {
#include "hash/sha256/sha256.h"
}

#include <string>

// SHA-256 of llama.cpp's vendored code, in pieces
class so8t_sha256 {
  public:
    so8t_sha256() { sha256_init(&state); }

    so8t_sha256 & update(const void * data, size_t size) {
        sha256_update(&state, (const unsigned char *) data, size);
        return *this;
    }

    so8t_sha256 & update(const std::string & text) { return update(text.data(), text.size()); }

    // 32 bytes
    std::string final() {
        std::string digest(SHA256_DIGEST_SIZE, '\0');
        sha256_final(&state, (unsigned char *) &digest[0]);
        return digest;
    }

  private:
    sha256_t state;
};

// HMAC-SHA256 (RFC 2104), 32 bytes; key: at most 64 bytes
inline std::string so8t_hmac(const std::string & key, const std::string & text) {
    std::string inner(64, 0x36); // a block of SHA-256
    std::string outer(64, 0x5c);
    for (size_t i = 0; i < key.size(); ++i) {
        inner[i] ^= key[i];
        outer[i] ^= key[i];
    }
    return so8t_sha256().update(outer).update(so8t_sha256().update(inner).update(text).final()).final();
}
