// A GGUF file of a tiny model with rotations, heads and a stem, whose SO8T keys and tensors the input changes. It is loaded
// and, if the loader takes it, evaluated. What belongs to the base alone is left as it is: that is llama.cpp's to check.

#include "so8t-fuzz.h"

#include "so8t-algebra.h"
#include "so8t-format.h"
#include "so8t.h"

#include "ggml.h"
#include "gguf.h"
#include "llama.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>

static const int64_t N_EMBD = 64, N_HEAD = 8, N_HEAD_KV = 2, N_LAYER = 1, N_VOCAB = 32, N_FF = 32, N_INNER = 16;

//
// the model: keys and tensors by name
//

struct fuzz_value {
    gguf_type type = GGUF_TYPE_UINT32; // of the value, or of the items of an array
    bool is_array  = false;
    std::vector<std::string> texts; // of GGUF_TYPE_STRING
    std::vector<double> numbers;    // of the others
};

struct fuzz_tensor {
    ggml_type type = GGML_TYPE_F32;
    std::vector<int64_t> ne;
    std::vector<float> data; // of F32; others are zero
};

struct fuzz_model {
    std::map<std::string, fuzz_value> keys;
    std::map<std::string, fuzz_tensor> tensors;
};

static fuzz_value numbers(gguf_type type, std::vector<double> values, bool is_array = true) {
    fuzz_value result;
    result.type     = type;
    result.is_array = is_array;
    result.numbers  = std::move(values);
    return result;
}

static fuzz_value texts(std::vector<std::string> values, bool is_array = true) {
    fuzz_value result;
    result.type     = GGUF_TYPE_STRING;
    result.is_array = is_array;
    result.texts    = std::move(values);
    return result;
}

static fuzz_tensor tensor(std::vector<int64_t> ne) {
    fuzz_tensor result;
    int64_t n = 1;
    for (const int64_t size : ne) {
        n *= size;
    }
    result.ne = std::move(ne);
    for (int64_t i = 0; i < n; ++i) {
        result.data.push_back((float) std::sin(0.7 * (double) i) / 8);
    }
    return result;
}

static void add_rotation(fuzz_model & model, const std::string & name, const float * generator, int n, bool per_head) {
    fuzz_tensor result;
    result.ne = {SO8T_DIM, SO8T_DIM, n};
    for (int i = 0; i < n; ++i) {
        const auto t = per_head ? (so8t_representation) (i % 3) : SO8T_VECTOR;
        for (const auto & row : so8t_rotation(generator + (per_head ? 0 : i * SO8T_N_GENERATORS), t)) {
            result.data.insert(result.data.end(), row.begin(), row.end());
        }
    }
    model.tensors["blk.0.so8t_" + name + "_rot.weight"] = result;
}

static fuzz_model make_model() {
    fuzz_model model;
    auto & keys = model.keys;

    keys["general.architecture"]              = texts({"so8t"}, false);
    keys["tokenizer.ggml.model"]              = texts({"no_vocab"}, false);
    const std::map<std::string, double> sizes = {{"vocab_size", N_VOCAB}, {"context_length", 64},
        {"embedding_length", N_EMBD}, {"block_count", N_LAYER}, {"feed_forward_length", N_FF},
        {"attention.head_count", N_HEAD}, {"attention.head_count_kv", N_HEAD_KV}, {"rope.dimension_count", 8},
        {"attention.key_length", 8}, {"attention.value_length", 8}};
    for (const auto & [name, size] : sizes) {
        keys["so8t." + name] = numbers(GGUF_TYPE_UINT32, {size}, false);
    }
    keys["so8t.attention.layer_norm_rms_epsilon"] = numbers(GGUF_TYPE_FLOAT32, {1e-5}, false);

    keys[SO8T_KV_FORMAT_VERSION]              = numbers(GGUF_TYPE_UINT32, {SO8T_FORMAT_VERSION}, false);
    keys[SO8T_KV_BASE_ARCHITECTURE]           = texts({"llama"}, false);
    keys[SO8T_KV_ROTATION_DIMENSION]          = numbers(GGUF_TYPE_UINT32, {SO8T_DIM}, false);
    keys[SO8T_KV_ROTATION_EXPLICIT]           = texts({"gate", "qk", "heads"});
    keys[SO8T_KV_ROTATION_FOLDED]             = texts({"v", "ffn"});
    keys[SO8T_KV_ATTN_HEAD_REPRESENTATION]    = numbers(GGUF_TYPE_INT32, {0, 1, 2, 0, 1, 2, 0, 1});
    keys[SO8T_KV_ATTN_HEAD_KV_REPRESENTATION] = numbers(GGUF_TYPE_INT32, {0, 1});

    keys[SO8T_KV_HEADS] = texts({"safety", "risk", "kind"});
    for (const std::string name : {"safety", "risk", "kind"}) {
        const std::string at         = "so8t.head." + name;
        keys[at + ".labels"]         = texts({"safe", "unsafe"});
        keys[at + ".actions"]        = texts({"allow", "refuse"});
        keys[at + ".thresholds"]     = numbers(GGUF_TYPE_FLOAT32, {0.5, 0.9});
        keys[at + ".temperature"]    = numbers(GGUF_TYPE_FLOAT32, {1}, false);
        keys[at + ".debounce"]       = numbers(GGUF_TYPE_UINT32, {1}, false);
        keys[at + ".scope"]          = texts({"both"}, false);
        keys[at + ".representation"] = numbers(GGUF_TYPE_INT32, {1}, false);
        const bool has_stem          = name != "safety";
        keys[at + ".taps"] = numbers(GGUF_TYPE_INT32, has_stem ? std::vector<double>{-1} : std::vector<double>{0, 1});
        keys[at + ".tap_norm"] = texts({has_stem ? "none" : "rms"}, false);
        keys[at + ".form"]     = texts({has_stem ? "mlp" : "linear"}, false);
        keys[at + ".link"]     = texts({has_stem ? "softmax" : "sigmoid"}, false);
        if (has_stem) {
            keys[at + ".stem"]       = texts({"shared"}, false);
            keys[at + ".activation"] = texts({"gelu"}, false);
        }
        model.tensors["so8t_head." + name + ".weight"] = tensor({has_stem ? N_INNER : 2 * N_EMBD, 2});
        model.tensors["so8t_head." + name + ".bias"]   = tensor({2});
    }
    keys["so8t.head.kind.prompt_token"]      = numbers(GGUF_TYPE_INT32, {3}, false);
    model.tensors["so8t_stem.shared.weight"] = tensor({N_EMBD, N_INNER});
    model.tensors["so8t_stem.shared.bias"]   = tensor({N_INNER});

    const std::map<std::string, std::vector<int64_t>> base = {{"attn_norm", {N_EMBD}}, {"ffn_norm", {N_EMBD}},
        {"attn_q", {N_EMBD, 8 * N_HEAD}}, {"attn_k", {N_EMBD, 8 * N_HEAD_KV}}, {"attn_v", {N_EMBD, 8 * N_HEAD_KV}},
        {"attn_output", {8 * N_HEAD, N_EMBD}}, {"ffn_gate", {N_EMBD, N_FF}}, {"ffn_up", {N_EMBD, N_FF}},
        {"ffn_down", {N_FF, N_EMBD}}};
    for (const auto & [name, ne] : base) {
        model.tensors["blk.0." + name + ".weight"] = tensor(ne);
    }
    model.tensors["token_embd.weight"]  = tensor({N_EMBD, N_VOCAB});
    model.tensors["output_norm.weight"] = tensor({N_EMBD});

    // gate_safe, gate_cmd and ffn have a row for each block, qk, v and heads have one
    const int n_blocks                   = N_EMBD / SO8T_DIM;
    model.tensors["so8t_out_gen.weight"] = tensor({SO8T_N_GENERATORS, n_blocks});
    auto & generators                    = model.tensors["blk.0.so8t_gen.weight"];
    generators                           = tensor({SO8T_N_GENERATORS, 3 * n_blocks + 3});
    const auto row                       = [&](int i) { return generators.data.data() + i * SO8T_N_GENERATORS; };
    add_rotation(model, "gate_safe", row(0), n_blocks, false);
    add_rotation(model, "gate_cmd", row(n_blocks), n_blocks, false);
    add_rotation(model, "q", row(2 * n_blocks), N_HEAD, true);
    add_rotation(model, "k", row(2 * n_blocks), N_HEAD_KV, true);
    add_rotation(model, "heads", row(2 * n_blocks + 2), 1, false);
    return model;
}

//
// the input: a list of changes
//

struct fuzz_input {
    const uint8_t * data;
    size_t size;

    // the next byte below n, 0 at the end
    size_t next(size_t n) {
        if (size == 0) {
            return 0;
        }
        --size;
        return *data++ % n;
    }

    template <typename T>
    const T & one(const std::vector<T> & values) {
        return values[next(values.size())];
    }
};

// keys of ours, those that the model lacks too, and those of the base that the loader reads beside them
static const std::vector<std::string> & changed_keys() {
    static const std::vector<std::string> result = [] {
        std::vector<std::string> keys = {SO8T_KV_FORMAT_VERSION, SO8T_KV_BASE_ARCHITECTURE, SO8T_KV_ROTATION_DIMENSION,
            SO8T_KV_ROTATION_EXPLICIT, SO8T_KV_ROTATION_FOLDED, SO8T_KV_ATTN_HEAD_REPRESENTATION,
            SO8T_KV_ATTN_HEAD_KV_REPRESENTATION, SO8T_KV_HEADS, "so8t.attention.head_count",
            "so8t.attention.head_count_kv", "so8t.pooling_type", "so8t.head..labels"};
        for (const char * name : {"safety", "risk", "kind"}) {
            for (const auto & row : so8t_head_key_rows) {
                keys.push_back(std::string("so8t.head.") + name + "." + row.field);
            }
            keys.push_back(std::string("so8t.head.") + name + ".colour");
        }
        return keys;
    }();
    return result;
}

static fuzz_value any_value(fuzz_input & input) {
    static const std::vector<std::string> words = {"", "safe", "unsafe", "allow", "refuse", "gate", "qk", "v", "heads",
        "ffn", "out", "safety", "risk", "kind", "shared", "other", "gelu", "silu", "relu", "rmsnorm", "none", "llama",
        "qwen3", "qwen2", "both", "prompt", "answer", "argmax", "rms", "mlp", "sigmoid", "attention", "ema", "mean",
        "max", "window", "window8", "token", "{}", "\xff\xfe", "a\nb", "a.b", "%s%n", std::string(300, 'x')};
    static const std::vector<double> values   = {0, 1, 2, 3, 8, 9, 7, -1, 0.5, 1e9, INT32_MAX, INT32_MIN, 4294967295.0,
        1e300, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()};
    static const std::vector<size_t> counts   = {0, 1, 2, 3, 8, 9, 64, 5000};
    static const std::vector<gguf_type> types = {GGUF_TYPE_STRING, GGUF_TYPE_UINT32, GGUF_TYPE_INT32, GGUF_TYPE_FLOAT32,
        GGUF_TYPE_BOOL, GGUF_TYPE_UINT64, GGUF_TYPE_UINT8};

    fuzz_value result;
    result.type     = input.one(types);
    result.is_array = input.next(4) != 0;
    const size_t n  = result.is_array ? input.one(counts) : 1;
    const bool same = input.next(2) == 0;
    for (size_t i = 0; i < n; ++i) {
        if (result.type == GGUF_TYPE_STRING) {
            result.texts.push_back(
                i == 0 || !same ? input.one(words) + (i < words.size() ? "" : std::to_string(i)) : result.texts[0]);
        } else {
            result.numbers.push_back(i == 0 || !same ? input.one(values) : result.numbers[0]);
        }
    }
    return result;
}

static void change_tensor(fuzz_model & model, fuzz_input & input) {
    std::vector<std::string> names;
    for (const auto & [name, unused] : model.tensors) {
        if (name.find("so8t") != std::string::npos) {
            names.push_back(name);
        }
    }
    if (names.empty()) {
        return;
    }
    const std::string name = input.one(names);
    auto & changed         = model.tensors[name];
    switch (input.next(6)) {
        case 0: model.tensors.erase(name); break;
        case 1: changed.type = input.one(std::vector<ggml_type>{GGML_TYPE_F16, GGML_TYPE_I32, GGML_TYPE_Q8_0}); break;
        case 2:
            changed.ne[input.next(changed.ne.size())] = input.one(
                std::vector<int64_t>{0, 1, 2, 7, 8, 16, 28, 64, 4096});
            break;
        case 3: changed.ne.resize(1 + input.next(4), 1); break;
        case 4: {
            std::vector<float> values = {NAN, INFINITY, -INFINITY, 0, 2};
#ifdef NDEBUG
            values.insert(
                values.end(), {3e38f, 1e20f}); // what overflows in the graph ends a build with ggml's assertions
#endif
            if (!changed.data.empty()) {
                changed.data[input.next(changed.data.size())] = input.one(values);
            }
            break;
        }
        case 5: model.tensors[input.one(names)] = changed; break;
    }
}

// the same model as version 1 has it: a tensor for each generator, no keys of later versions, heads that read no layers
static void make_version_1(fuzz_model & model) {
    auto generators = model.tensors.extract("blk.0.so8t_gen.weight");
    if (generators.empty() || generators.mapped().data.size() != (3 * N_EMBD / SO8T_DIM + 3) * SO8T_N_GENERATORS) {
        return; // changed already
    }
    auto begin = generators.mapped().data.begin();
    for (const auto & row : so8t_generator_rows) {
        const int64_t n = row.site == SO8T_SITE_GATE || row.site == SO8T_SITE_FFN ? N_EMBD / SO8T_DIM : 1;
        auto & alone    = model.tensors[std::string("blk.0.so8t_") + row.name + "_gen.weight"];
        alone.ne        = {SO8T_N_GENERATORS, n};
        alone.data.assign(begin, begin + n * SO8T_N_GENERATORS);
        begin += n * SO8T_N_GENERATORS;
    }
    for (const char * name : {"safety", "risk", "kind"}) {
        for (const auto & row : so8t_head_key_rows) {
            if (row.since > 1) {
                model.keys.erase(std::string("so8t.head.") + name + "." + row.field);
            }
        }
    }
    model.tensors["so8t_head.safety.weight"] = tensor({N_EMBD, 2});
    model.keys[SO8T_KV_FORMAT_VERSION]       = numbers(GGUF_TYPE_UINT32, {1}, false);
}

static const char VERSION_1 = 4;

static void change(fuzz_model & model, fuzz_input & input) {
    for (int n = 0; n < 4 && input.size > 0; ++n) {
        switch (input.next(5)) {
            case 0:         change_tensor(model, input); break;
            case 1:         model.keys.erase(input.one(changed_keys())); break;
            case VERSION_1: make_version_1(model); break;
            default:        {
                const std::string key = input.one(changed_keys());
                model.keys[key]       = any_value(input);
            }
        }
    }
}

//
// the file
//

template <typename T>
static T as(double value) {
    // conversions of what does not fit are not defined
    return value >= (double) std::numeric_limits<T>::lowest() && value < (double) std::numeric_limits<T>::max() ?
               (T) value :
               (T) -1;
}

template <typename T>
static void set_array(gguf_context * file, const std::string & key, const fuzz_value & value) {
    // bool vectors have no data()
    std::vector<T> data(value.numbers.size() + 1);
    for (size_t i = 0; i < value.numbers.size(); ++i) {
        data[i] = value.type == GGUF_TYPE_BOOL ? (T) (value.numbers[i] != 0) : as<T>(value.numbers[i]);
    }
    gguf_set_arr_data(file, key.c_str(), value.type, data.data(), value.numbers.size());
}

static void set_key(gguf_context * file, const std::string & key, const fuzz_value & value) {
    if (value.type == GGUF_TYPE_STRING) {
        std::vector<const char *> data = {nullptr};
        data.clear();
        for (const auto & text : value.texts) {
            data.push_back(text.c_str());
        }
        value.is_array ? gguf_set_arr_str(file, key.c_str(), data.data(), data.size()) :
                         gguf_set_val_str(file, key.c_str(), data[0]);
        return;
    }
    const double number = value.numbers.empty() ? 0 : value.numbers[0];
    switch (value.type) {
        case GGUF_TYPE_UINT32:
            value.is_array ? set_array<uint32_t>(file, key, value) :
                             gguf_set_val_u32(file, key.c_str(), as<uint32_t>(number));
            break;
        case GGUF_TYPE_INT32:
            value.is_array ? set_array<int32_t>(file, key, value) :
                             gguf_set_val_i32(file, key.c_str(), as<int32_t>(number));
            break;
        case GGUF_TYPE_FLOAT32:
            value.is_array ? set_array<float>(file, key, value) : gguf_set_val_f32(file, key.c_str(), (float) number);
            break;
        case GGUF_TYPE_UINT64:
            value.is_array ? set_array<uint64_t>(file, key, value) :
                             gguf_set_val_u64(file, key.c_str(), as<uint64_t>(number));
            break;
        case GGUF_TYPE_UINT8:
            value.is_array ? set_array<uint8_t>(file, key, value) :
                             gguf_set_val_u8(file, key.c_str(), as<uint8_t>(number));
            break;
        default:
            value.is_array ? set_array<int8_t>(file, key, value) : gguf_set_val_bool(file, key.c_str(), number != 0);
            break;
    }
}

static void write(const fuzz_model & model, const std::string & path) {
    const std::unique_ptr<gguf_context, decltype(&gguf_free)> file(gguf_init_empty(), gguf_free);
    for (const auto & [key, value] : model.keys) {
        set_key(file.get(), key, value);
    }
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(
        ggml_init({1 << 22, nullptr, /*no_alloc =*/true}), ggml_free);
    std::vector<std::vector<uint8_t>> bytes;
    for (const auto & [name, source] : model.tensors) {
        auto ne = source.ne;
        if (ne[0] % ggml_blck_size(source.type) != 0) {
            ne[0] = ggml_blck_size(source.type); // others cannot be made
        }
        ggml_tensor * made = ggml_new_tensor(ctx.get(), source.type, (int) ne.size(), ne.data());
        ggml_set_name(made, name.c_str());
        bytes.emplace_back(ggml_nbytes(made) + 1, 0);
        if (source.type == GGML_TYPE_F32) {
            memcpy(bytes.back().data(), source.data.data(),
                std::min(ggml_nbytes(made), source.data.size() * sizeof(float)));
        }
        made->data = bytes.back().data();
        gguf_add_tensor(file.get(), made);
    }
    gguf_write_to_file(file.get(), path.c_str(), /*only_meta =*/false);
}

//
// loading
//

static std::string last_errors;

static void keep_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        last_errors += text;
    }
}

static void evaluate(llama_model * model) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 32;
    params.n_threads            = 1;
    params.n_threads_batch      = 1;
    params.embeddings           = false;
    llama_context * ctx         = llama_init_from_model(model, params);
    if (!ctx) {
        return;
    }
    llama_token tokens[] = {1, 2, 3};
    llama_batch batch    = llama_batch_get_one(tokens, 3);
    SO8T_FUZZ_CHECK(llama_decode(ctx, batch) == 0);
    for (int32_t head = 0; head < llama_so8t_n_heads(model); ++head) {
        const llama_so8t_head found = llama_so8t_get_head(model, head);
        SO8T_FUZZ_CHECK(found.n_labels >= 1);
        std::vector<float> probabilities(found.n_labels);
        llama_so8t_get_probs_ith(ctx, head, -1, probabilities.data());
        for (int32_t label = 0; label < found.n_labels; ++label) {
            SO8T_FUZZ_CHECK(llama_so8t_get_label(model, head, label).name != nullptr);
        }
    }
    llama_so8t_get_action_ith(ctx, -1);
    llama_free(ctx);
}

std::vector<std::string> so8t_fuzz_seeds() {
    // no change, in both versions; then for each key one to each type, and for each kind of change one of a tensor
    std::vector<std::string> seeds = {"", {VERSION_1}};
    for (size_t key = 0; key < changed_keys().size(); ++key) {
        seeds.push_back({1, (char) key});
        for (char type = 0; type < 4; ++type) {
            seeds.push_back({2, (char) key, type, 1, (char) (key % 8), 1, 3, 5, 7, 9, 11, 13, 15});
        }
    }
    for (char kind = 0; kind < 6; ++kind) {
        for (char name = 0; name < 20; ++name) {
            seeds.push_back({0, name, kind, 0, 0});
            seeds.push_back({VERSION_1, 0, name, kind, 0, 0});
        }
    }
    return seeds;
}

int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const fuzz_model whole = [] {
        llama_log_set(keep_errors, nullptr);
        llama_backend_init();
        return make_model();
    }();
    fuzz_model model = whole;
    fuzz_input input = {data, size};
    change(model, input);

    const std::string path = so8t_fuzz_path("model.gguf");
    write(model, path);
    last_errors.clear();
    llama_model_params params = llama_model_default_params();
    params.load_mode          = LLAMA_LOAD_MODE_NONE;
    params.n_gpu_layers       = 0;
    llama_model * loaded      = llama_model_load_from_file(path.c_str(), params);
    if (loaded) {
        evaluate(loaded);
        llama_model_free(loaded);
    } else {
        SO8T_FUZZ_CHECK(!last_errors.empty());
    }
    if ((size == 0 || (size == 1 && data[0] == VERSION_1)) && !loaded) {
        fprintf(stderr, "the model without a change, or as version 1, does not load: %s\n", last_errors.c_str());
        abort();
    }
    return 0;
}
