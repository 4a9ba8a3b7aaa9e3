// A file of each version, saved by llama.cpp, is one of version 2 with the same rotations: usage: test-so8t-save OUT IN...

#include "so8t-format.h"

#include "ggml.h"
#include "gguf.h"
#include "llama.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

using gguf_file    = std::unique_ptr<gguf_context, decltype(&gguf_free)>;
using tensor_data  = std::unique_ptr<ggml_context, decltype(&ggml_free)>;
using opened_model = std::unique_ptr<llama_model, decltype(&llama_model_free)>;

static std::pair<gguf_file, tensor_data> open_gguf(const char * path) {
    ggml_context * data = nullptr;
    gguf_context * file = gguf_init_from_file(path, {/*no_alloc =*/false, &data});
    return {gguf_file(file, gguf_free), tensor_data(data, ggml_free)};
}

// rows of all generators of a layer, from either form of file
static std::vector<float> generators_of(ggml_context * data, int layer) {
    const std::string prefix       = "blk." + std::to_string(layer) + ".so8t_";
    std::vector<std::string> names = {prefix + "gen.weight"};
    for (const auto & row : so8t_generator_rows) {
        names.push_back(prefix + row.name + "_gen.weight");
    }
    std::vector<float> result;
    for (const auto & name : names) {
        const ggml_tensor * tensor = ggml_get_tensor(data, name.c_str());
        if (tensor) {
            const auto * values = static_cast<const float *>(tensor->data);
            result.insert(result.end(), values, values + ggml_nelements(tensor));
        }
    }
    return result;
}

static std::string compare(const char * in, const char * out) {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers       = 0;
    {
        const opened_model model(llama_model_load_from_file(in, params), llama_model_free);
        if (!model) {
            return "does not load";
        }
        llama_model_save_to_file(model.get(), out);
    }
    if (!opened_model(llama_model_load_from_file(out, params), llama_model_free)) {
        return "what was saved does not load";
    }
    const auto [old_file, old_data] = open_gguf(in);
    const auto [new_file, new_data] = open_gguf(out);
    const int64_t version           = gguf_find_key(new_file.get(), SO8T_KV_FORMAT_VERSION);
    if (version < 0 || gguf_get_val_u32(new_file.get(), version) != SO8T_FORMAT_VERSION) {
        return "is not saved as the newest version";
    }
    for (int layer = 0; layer < 2; ++layer) {
        const std::string name  = "blk." + std::to_string(layer) + ".so8t_gen.weight";
        const ggml_tensor * one = ggml_get_tensor(new_data.get(), name.c_str());
        if (!one || one->ne[0] != 28 || one->ne[1] != 9) { // two blocks, so 2 + 2 + 1 + 1 + 1 + 2 rows
            return name + " is not [28, 9]";
        }
        if (generators_of(old_data.get(), layer) != generators_of(new_data.get(), layer)) {
            return name + " has other values";
        }
    }
    return "";
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s out.gguf in.gguf...\n", argv[0]);
        return 1;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    int n_failed = 0;
    for (int i = 2; i < argc; ++i) {
        const std::string problem = compare(argv[i], argv[1]);
        if (!problem.empty()) {
            fprintf(stderr, "FAIL %s: %s\n", argv[i], problem.c_str());
            ++n_failed;
        }
    }
    printf("%d passed, %d failed\n", argc - 2 - n_failed, n_failed);
    return n_failed == 0 ? 0 : 1;
}
