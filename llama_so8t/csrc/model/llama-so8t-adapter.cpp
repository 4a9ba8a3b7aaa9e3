#include "llama-so8t-adapter.h"

#include "llama-so8t-heads.h"
#include "llama-so8t.h"
#include "so8t-algebra.h"
#include "so8t-kv.h"

#include "llama-impl.h"

#include "gguf.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>

using so8t_sites = std::set<so8t_site>;

static so8t_sites so8t_folded_sites(const llama_model & model) {
    if (model.arch == LLM_ARCH_SO8T) {
        const auto & sites = static_cast<const llama_model_so8t &>(model).sites_folded;
        return so8t_sites(sites.begin(), sites.end());
    }
    so8t_sites result;
    for (const int site : model.so8t_folded) {
        result.insert((so8t_site) site);
    }
    return result;
}

static std::string so8t_sites_text(const so8t_sites & sites) {
    std::string text;
    for (const auto site : sites) {
        text += std::string(text.empty() ? "" : ", ") + so8t_site_names[site];
    }
    return text.empty() ? "none" : text;
}

// A generator of zeros makes the identity, which turns nothing. Files of the base's architecture have no generators.
static bool so8t_turns(const llama_model & model, int il, so8t_generator_index generator) {
    if (model.arch != LLM_ARCH_SO8T) {
        return true;
    }
    const auto & layers  = static_cast<const llama_model_so8t &>(model).so8t_layers;
    const auto [data, n] = il < 0 || (size_t) il >= layers.size() ?
                               so8t_generator() :
                               so8t_get_generator(layers[il].generators, generator);
    return n == 0 || std::any_of(data, data + n * SO8T_N_GENERATORS, [](float value) { return value != 0.0f; });
}

// sites that turn a weight of the base model, as far as they are among those given
static so8t_sites so8t_turning_sites(const llama_model & model, const std::string & weight, const so8t_sites & among) {
    so8t_sites result;
    int il = -1;
    int n  = 0;
    if (sscanf(weight.c_str(), "blk.%4d.%n", &il, &n) != 1 || n == 0) {
        return result;
    }
    const std::string name = weight.substr(n);
    for (const auto & row : so8t_folded_rows) {
        const bool in_one = name == "attn_qkv.weight" && // of foreign files, with q, k and v in one
                            (!strcmp(row.weight, "attn_q.weight") || !strcmp(row.weight, "attn_k.weight") ||
                                !strcmp(row.weight, "attn_v.weight"));
        const auto site   = so8t_generator_rows[row.generator].site;
        if ((name == row.weight || in_one) && among.count(site) && so8t_turns(model, il, row.generator)) {
            result.insert(site);
        }
    }
    return result;
}

// llama.cpp ends the process where one of these has another type
static void so8t_check_keys(const gguf_context * adapter) {
    for (const auto key : {LLM_KV_GENERAL_TYPE, LLM_KV_GENERAL_ARCHITECTURE, LLM_KV_ADAPTER_TYPE}) {
        so8t_kv_string(adapter, LLM_KV(LLM_ARCH_UNKNOWN)(key), "");
    }
    so8t_kv_float(adapter, LLM_KV(LLM_ARCH_UNKNOWN)(LLM_KV_ADAPTER_LORA_ALPHA), 0);
}

// as it does in the graph where A and B do not fit each other, or stand for the output and the embedding alike
static void so8t_check_pair(
    const llama_model & model, const gguf_context * adapter, const std::string & weight, const std::string & name) {
    const bool is_embedding = weight == "token_embd.weight";
    if (is_embedding && model.output && model.output->name == weight) {
        throw std::runtime_error(format("so8t: the adapter has the tensor '%s', but the output matrix of this model is "
                                        "its embedding: expected none on either",
            name.c_str()));
    }
    const int64_t * sizes[2] = {};
    for (const int i : {0, 1}) {
        const std::string part = weight + (i == 0 ? ".lora_a" : ".lora_b");
        const int64_t id       = gguf_find_tensor(adapter, part.c_str());
        const int64_t * ne     = id < 0 ? nullptr : gguf_get_tensor_ne(adapter, id);
        if (ne && (ne[2] != 1 || ne[3] != 1 || ne[0] < 1 || ne[1] < 1)) {
            throw std::runtime_error(
                format("so8t: the adapter's tensor '%s' is no matrix, expected one", part.c_str()));
        }
        sizes[i] = ne;
    }
    if (is_embedding && sizes[0] && sizes[1] && sizes[0][0] != sizes[1][0]) {
        throw std::runtime_error(
            format("so8t: the adapter's tensors for '%s' have the ranks %" PRId64 " and %" PRId64 ", expected the same",
                weight.c_str(), sizes[0][0], sizes[1][0]));
    }
}

static void so8t_check_folded(
    const llama_model & model, const std::string & weight, const std::string & name, const so8t_sites & of_adapter) {
    const auto file_turns    = so8t_turning_sites(model, weight, so8t_folded_sites(model));
    const auto adapter_turns = so8t_turning_sites(model, weight, of_adapter);
    if (file_turns == adapter_turns) {
        return;
    }
    throw std::runtime_error(format("so8t: the adapter's tensor '%s' is for weights with these rotations in them: %s; "
                                    "this file has: %s; make the adapter for this file with `so8t convert --lora DIR`",
        name.c_str(), so8t_sites_text(adapter_turns).c_str(), so8t_sites_text(file_turns).c_str()));
}

void so8t_check_adapter(const llama_model & model, const gguf_context * adapter) {
    if (model.arch != LLM_ARCH_SO8T && !model.so8t_heads && model.so8t_folded.empty()) {
        return;
    }
    so8t_check_keys(adapter);
    const auto sites = so8t_load_sites(adapter, SO8T_KV_LORA_FOLDED);
    const so8t_sites of_adapter(sites.begin(), sites.end());

    for (int64_t i = 0; i < gguf_get_n_tensors(adapter); ++i) {
        const std::string name   = gguf_get_tensor_name(adapter, i);
        const std::string weight = name.substr(0, name.rfind(".lora_"));
        if (name.find("so8t_") != std::string::npos) {
            throw std::runtime_error(
                format("so8t: the adapter has the tensor '%s': heads and rotations take no adapter; "
                       "fold it into the model with `so8t convert --merge-lora DIR`",
                    so8t_shown(name).c_str()));
        }
        if (!model.get_tensor(weight.c_str())) {
            continue; // llama.cpp says so
        }
        so8t_check_pair(model, adapter, weight, name);
        so8t_check_folded(model, weight, name, of_adapter);
    }
}
