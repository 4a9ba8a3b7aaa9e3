#include "so8t-fixture.h"

#include "so8t-algebra.h"
#include "so8t-format.h"

#include "ggml-backend.h"

#include <cstring>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <vector>

static void set_strings(gguf_context * ctx, const char * key, std::vector<const char *> values) {
    gguf_set_arr_str(ctx, key, values.data(), values.size());
}

void so8t_fixture_kv(gguf_context * ctx) {
    gguf_set_val_u32(ctx, SO8T_KV_FORMAT_VERSION, SO8T_FORMAT_VERSION);
    gguf_set_val_str(ctx, SO8T_KV_BASE_ARCHITECTURE, "qwen3");
    set_strings(ctx, SO8T_KV_ROTATION_EXPLICIT, {std::begin(so8t_site_names), std::end(so8t_site_names)});

    set_strings(ctx, SO8T_KV_HEADS, {"safety", "authority"});
    set_strings(ctx, "so8t.head.safety.labels", {"safe", "unsafe"});
    set_strings(ctx, "so8t.head.safety.actions", {"allow", "refuse"});
    set_strings(ctx, "so8t.head.authority.labels", {"handle", "escalate"});
    set_strings(ctx, "so8t.head.authority.actions", {"allow", "escalate"});
    const float thresholds[] = {0.5f, 0.5f};
    gguf_set_arr_data(ctx, "so8t.head.safety.thresholds", GGUF_TYPE_FLOAT32, thresholds, 2);
    gguf_set_arr_data(ctx, "so8t.head.authority.thresholds", GGUF_TYPE_FLOAT32, thresholds, 2);
}

// coefficients of row i of the generator NAME, the same in every layer
static std::vector<float> make_generator(const std::string & name, int64_t i) {
    std::mt19937 rng(std::hash<std::string>()(name) + i);
    std::normal_distribution<float> normal(0.0f, 0.5f);
    std::vector<float> result(SO8T_N_GENERATORS);
    for (float & a : result) {
        a = normal(rng);
    }
    return result;
}

// all generators of a layer with 8 to 15 heads, so with one group of heads; n_rows of them
static std::vector<float> make_generators(int64_t n_rows) {
    const int64_t n_blocks = (n_rows - 3) / 3; // gate_safe, gate_cmd and ffn have so many, qk, v and heads have one
    std::vector<float> result;
    for (const auto & row : so8t_generator_rows) {
        const bool by_block = row.site == SO8T_SITE_GATE || row.site == SO8T_SITE_FFN;
        for (int64_t i = 0; i < (by_block ? n_blocks : 1); ++i) {
            const auto a = make_generator(row.name, i);
            result.insert(result.end(), a.begin(), a.end());
        }
    }
    return result;
}

bool so8t_fixture_data(ggml_tensor * tensor) {
    const char * begin = strstr(tensor->name, ".so8t_");
    const char * gen   = strstr(tensor->name, ".so8t_gen.weight");
    const char * rot   = strstr(tensor->name, "_rot.weight");
    if (!begin || (!gen && !rot)) {
        return false;
    }
    std::vector<float> data;

    if (gen) {
        data = make_generators(tensor->ne[1]);
    } else {
        begin += strlen(".so8t_");
        std::string name(begin, rot);
        const bool per_head = name == "q" || name == "k" || name == "v";
        name                = name == "q" || name == "k" ? "qk" : name;
        for (int64_t i = 0; i < tensor->ne[2]; ++i) {
            const auto a = make_generator(name, per_head ? 0 : i);
            for (const auto & row : so8t_rotation(a.data(), per_head ? (so8t_representation) (i % 3) : SO8T_VECTOR)) {
                data.insert(data.end(), row.begin(), row.end());
            }
        }
    }
    ggml_backend_tensor_set(tensor, data.data(), 0, ggml_nbytes(tensor));
    return true;
}
