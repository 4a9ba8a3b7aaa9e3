#include "so8t-kv.h"

#include "so8t-format.h"

#include "llama-impl.h"

#include "gguf.h"

#include <algorithm>
#include <stdexcept>

static int64_t so8t_find(const gguf_context * ctx, const std::string & key, bool required) {
    const int64_t id = gguf_find_key(ctx, key.c_str());
    if (id < 0 && required) {
        throw std::runtime_error(format("so8t: key '%s' is missing", so8t_shown(key).c_str()));
    }
    return id;
}

static void so8t_expect(const std::string & key, gguf_type found, gguf_type expected, const char * what) {
    if (found != expected) {
        throw std::runtime_error(format("so8t: key '%s' is %s%s, expected %s%s", key.c_str(), what,
            gguf_type_name(found), what, gguf_type_name(expected)));
    }
}

static int64_t so8t_find_scalar(const gguf_context * ctx, const std::string & key, gguf_type type) {
    const int64_t id = so8t_find(ctx, key, false);
    if (id >= 0) {
        so8t_expect(key, gguf_get_kv_type(ctx, id), type, "");
    }
    return id;
}

static int64_t so8t_find_array(const gguf_context * ctx, const std::string & key, gguf_type type, bool required) {
    const int64_t id = so8t_find(ctx, key, required);
    if (id >= 0) {
        so8t_expect(key, gguf_get_kv_type(ctx, id), GGUF_TYPE_ARRAY, "");
        so8t_expect(key, gguf_get_arr_type(ctx, id), type, "array of ");
    }
    return id;
}

std::string so8t_kv_string(const gguf_context * ctx, const std::string & key, const std::string & def) {
    const int64_t id = so8t_find_scalar(ctx, key, GGUF_TYPE_STRING);
    return id < 0 ? def : gguf_get_val_str(ctx, id);
}

uint32_t so8t_kv_uint(const gguf_context * ctx, const std::string & key, uint32_t def) {
    const int64_t id = so8t_find_scalar(ctx, key, GGUF_TYPE_UINT32);
    return id < 0 ? def : gguf_get_val_u32(ctx, id);
}

int32_t so8t_kv_int(const gguf_context * ctx, const std::string & key, int32_t def) {
    const int64_t id = so8t_find_scalar(ctx, key, GGUF_TYPE_INT32);
    return id < 0 ? def : gguf_get_val_i32(ctx, id);
}

float so8t_kv_float(const gguf_context * ctx, const std::string & key, float def) {
    const int64_t id = so8t_find_scalar(ctx, key, GGUF_TYPE_FLOAT32);
    return id < 0 ? def : gguf_get_val_f32(ctx, id);
}

std::vector<std::string> so8t_kv_strings(const gguf_context * ctx, const std::string & key, bool required) {
    std::vector<std::string> result;
    const int64_t id = so8t_find_array(ctx, key, GGUF_TYPE_STRING, required);
    for (size_t i = 0; id >= 0 && i < gguf_get_arr_n(ctx, id); ++i) {
        result.push_back(gguf_get_arr_str(ctx, id, i));
    }
    return result;
}

template <typename T>
static std::vector<T> so8t_kv_array(const gguf_context * ctx, const std::string & key, gguf_type type, bool required) {
    const int64_t id = so8t_find_array(ctx, key, type, required);
    if (id < 0) {
        return {};
    }
    const T * data = (const T *) gguf_get_arr_data(ctx, id);
    return std::vector<T>(data, data + gguf_get_arr_n(ctx, id));
}

std::vector<float> so8t_kv_floats(const gguf_context * ctx, const std::string & key, bool required) {
    return so8t_kv_array<float>(ctx, key, GGUF_TYPE_FLOAT32, required);
}

std::vector<int32_t> so8t_kv_ints(const gguf_context * ctx, const std::string & key, bool required) {
    return so8t_kv_array<int32_t>(ctx, key, GGUF_TYPE_INT32, required);
}

uint32_t so8t_kv_version(const gguf_context * ctx) {
    const uint32_t version = so8t_kv_uint(ctx, SO8T_KV_FORMAT_VERSION, 1);
    if (version < 1 || version > SO8T_FORMAT_VERSION) {
        throw std::runtime_error(
            format("so8t: key '" SO8T_KV_FORMAT_VERSION "' is %u, this program reads version 1 to %d", version,
                SO8T_FORMAT_VERSION));
    }
    return version;
}

void so8t_set_strings(gguf_context * ctx, const std::string & key, const std::vector<std::string> & values) {
    std::vector<const char *> data;
    for (const auto & value : values) {
        data.push_back(value.c_str());
    }
    gguf_set_arr_str(ctx, key.c_str(), data.data(), data.size());
}

int so8t_index_of(const so8t_names & names, const std::string & value) {
    const auto found = std::find(names.begin(), names.end(), value);
    return found == names.end() ? -1 : (int) (found - names.begin());
}

std::string so8t_one_of(const so8t_names & names) {
    std::string result;
    for (size_t i = 0; i < names.size(); ++i) {
        result += (i == 0 ? "" : i + 1 < names.size() ? ", " : " or ") + names[i];
    }
    return result;
}

// length of the UTF-8 sequence at i, 0 if there is none
static size_t so8t_sequence(const std::string & text, size_t i) {
    const auto byte = [&](size_t k) { return k < text.size() ? (uint8_t) text[k] : 0; };
    const uint8_t b = byte(i);
    if (b < 0x80) {
        return 1;
    }
    const size_t n = b >= 0xc2 && b < 0xe0 ? 2 : b >= 0xe0 && b < 0xf0 ? 3 : b >= 0xf0 && b < 0xf5 ? 4 : 0;
    for (size_t k = 1; k < n; ++k) {
        if ((byte(i + k) & 0xc0) != 0x80) {
            return 0;
        }
    }
    const uint8_t second = byte(i + 1);
    // longer than needed, half of a surrogate pair, beyond the last character
    const bool is_wrong = (b == 0xe0 && second < 0xa0) || (b == 0xed && second >= 0xa0) ||
                          (b == 0xf0 && second < 0x90) || (b == 0xf4 && second >= 0x90);
    return is_wrong ? 0 : n;
}

bool so8t_is_text(const std::string & text) {
    for (size_t i = 0; i < text.size();) {
        const size_t n = so8t_sequence(text, i);
        if (n == 0) {
            return false;
        }
        i += n;
    }
    return !text.empty();
}

bool so8t_is_name(const std::string & text) {
    return so8t_is_text(text) && std::all_of(text.begin(), text.end(), [](char c) {
        return (c & 0x80) != 0 || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '_' || c == '-';
    });
}

std::string so8t_shown(const std::string & text) {
    static constexpr size_t max_size = 80;

    std::string result;
    size_t i = 0;
    while (i < text.size() && result.size() < max_size) {
        const size_t n      = so8t_sequence(text, i);
        const bool is_fine  = n > 1 || (n == 1 && text[i] >= 0x20 && text[i] != 0x7f);
        result             += is_fine ? text.substr(i, n) : "?";
        i                  += n == 0 ? 1 : n;
    }
    return i < text.size() ? result + "..." : result;
}

int so8t_kv_name(const gguf_context * ctx, const std::string & key, const so8t_names & names, int def) {
    const std::string value = so8t_kv_string(ctx, key, names[def]);
    const int index         = so8t_index_of(names, value);
    if (index < 0) {
        throw std::runtime_error(format(
            "so8t: key '%s' is '%s', expected %s", key.c_str(), so8t_shown(value).c_str(), so8t_one_of(names).c_str()));
    }
    return index;
}
