#pragma once

#include <string>

// bytes as lower-case hex digits
inline std::string so8t_hex(const std::string & bytes) {
    static const char digits[] = "0123456789abcdef";
    std::string hex;
    for (const unsigned char c : bytes) {
        hex += digits[c >> 4];
        hex += digits[c & 15];
    }
    return hex;
}

// the bytes of hex digits; hex: an even number of them, and nothing else
inline std::string so8t_unhex(const std::string & hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) {
        bytes += (char) std::stoi(hex.substr(i, 2), nullptr, 16);
    }
    return bytes;
}
