#include "so8t-audit-key.h"

#include "so8t-file.h"
#include "so8t-hex.h"
#include "so8t-sha256.h"

#include "common.h"
#include "log.h"

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <random>

#include <unistd.h>

namespace fs = std::filesystem;

static const size_t SO8T_KEY_SIZE = 64; // hex digits

std::string so8t_audit_key(const std::string & path) {
    if (!fs::exists(path)) {
        std::random_device device;
        std::string key;
        while (key.size() < 32) {
            const uint32_t bits = device();
            key.append((const char *) &bits, sizeof(bits));
        }
        // whole or not at all, and never in the place of another
        const std::string incoming = so8t_write_beside(path, so8t_hex(key) + "\n", 0600);
        const bool made            = ::link(incoming.c_str(), path.c_str()) == 0 || errno == EEXIST;
        if (!made) {
            throw so8t_file_error("make", path);
        }
        ::unlink(incoming.c_str());
        so8t_sync_directory(path);
        LOG_INF("so8t: made '%s', the key of the digests in the audit log\n", path.c_str());
    }
    std::ifstream file(path); // may be a link: secrets of containers are
    std::string text(SO8T_KEY_SIZE + 16, '\0');
    file.read(&text[0], text.size());
    text.resize(file.gcount());
    text = string_strip(text);
    if (text.size() != SO8T_KEY_SIZE || text.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
        throw std::runtime_error("so8t: '" + path + "': expected the key of the audit log, 64 hex digits");
    }
    if ((fs::status(path).permissions() & fs::perms::others_read) != fs::perms::none) {
        LOG_WRN("so8t: every user of this machine can read '%s' and test guesses of logged texts; chmod 600 it\n",
            path.c_str());
    }
    return so8t_unhex(text);
}

std::string so8t_hmac_hex(const std::string & key, const std::string & text) {
    return so8t_hex(so8t_hmac(key, text));
}
