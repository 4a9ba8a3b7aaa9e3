#include "so8t-heads-files.h"

#include "so8t-format.h"
#include "so8t-tensor-hash.h"
#include "so8t.h"

#include "common.h"
#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>

std::vector<so8t_heads_file> so8t_heads_files(const std::string & text) {
    std::vector<so8t_heads_file> files;
    for (const auto & path : string_split<std::string>(text, ',')) {
        // opened here, so that a wrong path is an error before the model loads
        if (path.empty() || !std::ifstream(path)) {
            throw std::invalid_argument(string_format(
                "cannot read '%s': %s", path.c_str(), path.empty() ? "expected the name of a file" : strerror(errno)));
        }
        files.push_back({path, ""});
    }
    return files;
}

so8t_joined_args::so8t_joined_args(int & argc, char **& argv) {
    const auto is_option = [&](int i) {
        std::string name = argv[i];
        std::replace(name.begin(), name.end(), '_', '-'); // as llama.cpp reads names
        return name == SO8T_HEADS_OPTION && i + 1 < argc;
    };
    size_t at = 0; // of the value, among args
    for (int i = 0; i < argc; ++i) {
        if (!is_option(i)) {
            args.push_back(argv[i]);
            continue;
        }
        if (at == 0) {
            args.push_back(argv[i]);
            args.push_back(nullptr);
            at = args.size() - 1;
        }
        value += (value.empty() ? "" : ",") + std::string(argv[++i]);
    }
    if (at > 0) {
        args[at] = value.data();
    }
    argc = (int) args.size();
    args.push_back(nullptr);
    argv = args.data();
}

// the base that the heads of a file were fitted on, as the hash of its tensors; empty: it does not say
static std::string so8t_base_of(const std::string & path) {
    gguf_context * file = gguf_init_from_file(path.c_str(), {/* .no_alloc = */ true, /* .ctx = */ nullptr});
    std::string result;
    if (file) {
        const int64_t key = gguf_find_key(file, SO8T_KV_BASE_SHA256); // the library has checked its type
        result            = key < 0 ? "" : gguf_get_val_str(file, key);
        gguf_free(file);
    }
    return result;
}

// heads of other files are not what a head was fitted on
static bool so8t_is_of_base(const std::string & tensor) {
    return tensor.rfind("so8t_head.", 0) != 0 && tensor.rfind("so8t_stem.", 0) != 0;
}

static void so8t_check_base(const std::string & path, common_params & params, bool has_own_heads) {
    const std::string expected = so8t_base_of(path);
    if (expected.empty()) {
        return;
    }
    so8t_params & so8t = params.so8t;
    if (so8t.base_sha256.empty()) {
        so8t.base_sha256  = so8t_tensor_hash(params.model.path, so8t_is_of_base);
        so8t.model_sha256 = has_own_heads ? so8t.model_sha256 : so8t.base_sha256;
    }
    if (so8t.base_sha256 != expected) {
        throw std::runtime_error(SO8T_HEADS_OPTION ": the heads of '" + path +
                                 "' belong to a base whose tensors have the hash " + expected + ", those of '" +
                                 params.model.path + "' have " + so8t.base_sha256);
    }
}

bool so8t_load_heads_files(llama_model * model, common_params & params) {
    const bool has_own_heads = llama_so8t_n_heads(model) > 0;
    params.so8t.base_sha256.clear(); // the model's file may have changed while it was not loaded
    for (auto & file : params.so8t.heads) {
        const std::string sha256 = so8t_file_hash(file.path);
        if (!file.sha256.empty() && file.sha256 != sha256) {
            throw std::runtime_error(SO8T_HEADS_OPTION ": '" + file.path +
                                     "' was changed since the model was first loaded: start the program again");
        }
        file.sha256 = sha256;
        if (!llama_so8t_load_heads(model, file.path.c_str())) {
            return false;
        }
        so8t_check_base(file.path, params, has_own_heads);
    }
    return true;
}
