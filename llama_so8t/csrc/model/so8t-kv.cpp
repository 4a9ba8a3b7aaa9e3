#include "so8t-kv.h"

#include "llama-impl.h"

#include "gguf.h"

#include <algorithm>
#include <stdexcept>

static int64_t so8t_find(const gguf_context * ctx, const std::string & key, bool required) {
    const int64_t id = gguf_find_key(ctx, key.c_str());
    if (id < 0 && required) {
        throw std::runtime_error(format("so8t: key '%s' is missing", key.c_str()));
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
