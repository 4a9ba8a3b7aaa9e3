#include "so8t-tensor-hash.h"

#include "so8t-hex.h"
#include "so8t-sha256.h"

#include "ggml.h"
#include "gguf.h"
#include "llama.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

static const size_t SO8T_CHUNK = 8 << 20;

struct so8t_stored_tensor {
    std::string head; // name, type, dims
    std::string path;
    uint64_t offset;
    uint64_t size;
    std::string digest;
};

struct so8t_gguf {
    ggml_context * ctx  = nullptr;
    gguf_context * gguf = nullptr;

    explicit so8t_gguf(const std::string & path) {
        gguf = gguf_init_from_file(path.c_str(), {/* .no_alloc = */ true, /* .ctx = */ &ctx});
        if (!gguf) {
            throw std::runtime_error("so8t: '" + path + "' is no GGUF file that could be hashed");
        }
    }

    ~so8t_gguf() {
        gguf_free(gguf);
        ggml_free(ctx);
    }
};

static std::string so8t_tensor_head(const ggml_tensor * tensor) {
    int n_dims = GGML_MAX_DIMS;
    while (n_dims > 1 && tensor->ne[n_dims - 1] == 1) {
        n_dims--;
    }
    std::string dims;
    for (int i = 0; i < n_dims; ++i) {
        dims += (i == 0 ? "" : ",") + std::to_string(tensor->ne[i]);
    }
    std::string type = ggml_type_name(tensor->type);
    std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return std::tolower(c); });

    const std::string zero(1, '\0');
    return tensor->name + zero + type + zero + dims + zero;
}

// adds the tensors of one file; returns the number of parts of its model
static int so8t_read_part(const std::string & path, std::map<std::string, so8t_stored_tensor> & tensors) {
    const so8t_gguf file(path);
    for (int64_t i = 0; i < gguf_get_n_tensors(file.gguf); ++i) {
        const char * name               = gguf_get_tensor_name(file.gguf, i);
        const so8t_stored_tensor tensor = {
            so8t_tensor_head(ggml_get_tensor(file.ctx, name)),
            path,
            gguf_get_data_offset(file.gguf) + gguf_get_tensor_offset(file.gguf, i),
            gguf_get_tensor_size(file.gguf, i),
            "",
        };
        if (!tensors.emplace(name, tensor).second) {
            throw std::runtime_error("so8t: '" + path + "': tensor '" + name + "' is in another part too");
        }
    }
    const int64_t key = gguf_find_key(file.gguf, "split.count");
    return key < 0 || gguf_get_kv_type(file.gguf, key) != GGUF_TYPE_UINT16 ?
               1 :
               std::max<int>(1, gguf_get_val_u16(file.gguf, key));
}

static std::string so8t_digest(const so8t_stored_tensor & tensor) {
    std::ifstream file(tensor.path, std::ios::binary);
    file.seekg(tensor.offset);

    so8t_sha256 hash;
    std::vector<char> chunk(std::min<uint64_t>(SO8T_CHUNK, tensor.size));
    for (uint64_t left = tensor.size; left > 0; left -= chunk.size()) {
        chunk.resize(std::min<uint64_t>(left, chunk.size()));
        if (!file.read(chunk.data(), chunk.size())) {
            return "";
        }
        hash.update(chunk.data(), chunk.size());
    }
    return hash.final();
}

std::string so8t_tensor_hash(const std::string & path, const std::function<bool(const std::string & name)> & counts) {
    std::map<std::string, so8t_stored_tensor> tensors;
    const int n_parts = so8t_read_part(path, tensors);
    if (n_parts > 1) {
        std::vector<char> prefix(path.size() + 1);
        const int32_t n = llama_split_prefix(prefix.data(), prefix.size(), path.c_str(), 0, n_parts);
        if (n == 0) {
            throw std::runtime_error(
                "so8t: '" + path + "' is not named as the first of " + std::to_string(n_parts) + " parts");
        }
        std::vector<char> part(path.size() + 32);
        for (int i = 1; i < n_parts; ++i) {
            llama_split_path(part.data(), part.size(), prefix.data(), i, n_parts);
            so8t_read_part(part.data(), tensors);
        }
    }

    std::vector<so8t_stored_tensor *> order;
    for (auto & [name, tensor] : tensors) {
        if (!counts || counts(name)) {
            order.push_back(&tensor);
        }
    }
    std::atomic<size_t> next = 0;
    const auto work          = [&]() {
        for (size_t i = next++; i < order.size(); i = next++) {
            order[i]->digest = so8t_digest(*order[i]);
        }
    };
    std::vector<std::thread> threads;
    try {
        for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) {
            threads.emplace_back(work);
        }
    } catch (const std::system_error &) { // as many as there may be
    }
    work();
    for (auto & thread : threads) {
        thread.join();
    }

    so8t_sha256 hash;
    for (const auto * tensor : order) {
        if (tensor->digest.empty()) {
            throw std::runtime_error("so8t: '" + tensor->path + "' cannot be read to its end");
        }
        hash.update(tensor->head).update(tensor->digest);
    }
    return so8t_hex(hash.final());
}

std::string so8t_file_hash(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    so8t_sha256 hash;
    std::vector<char> chunk(SO8T_CHUNK);
    while (file.read(chunk.data(), chunk.size()) || file.gcount() > 0) {
        hash.update(chunk.data(), file.gcount());
    }
    if (!file.eof()) {
        throw std::runtime_error("so8t: '" + path + "' cannot be read to its end");
    }
    return so8t_hex(hash.final());
}
