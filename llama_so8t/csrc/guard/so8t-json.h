#pragma once

#include "json.h"

#include <string>

// Copying and printing a JSON value recurses, so a text that is nested some ten thousand times would end the program.
static const int SO8T_JSON_MAX_DEPTH = 32;

// of the body of any request: schemas of tools are nested
static const int SO8T_BODY_MAX_DEPTH = 1000;

// before it is parsed; text may be anything
inline bool so8t_json_too_deep(const std::string & text, int max_depth = SO8T_JSON_MAX_DEPTH) {
    int depth      = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            i         += c == '\\';
            in_string  = c != '"';
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > max_depth) {
                return true;
            }
        } else if (c == '}' || c == ']') {
            --depth;
        }
    }
    return false;
}

// gives an object the keys of another one that it lacks
inline void so8t_json_fill(common_json & object, const common_json & defaults) {
    for (const auto & [key, value] : defaults.items()) {
        if (!object.contains(key)) {
            object[key] = value;
        }
    }
}
