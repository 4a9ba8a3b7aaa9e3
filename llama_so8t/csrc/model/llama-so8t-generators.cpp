#include "llama-so8t-generators.h"

#include "so8t-algebra.h"
#include "so8t-kv.h"

#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include <algorithm>
#include <cinttypes>
#include <numeric>
#include <stdexcept>

static so8t_per so8t_per_of(int generator) {
    for (const auto & row : so8t_rotation_rows) {
        if (row.generator == generator) {
            return row.per; // q and k, which share one, are both by head
        }
    }
    GGML_ABORT("a generator without a rotation");
}

// rows of each generator of a layer: n_blocks where it has one for each block, or for all of them
static void so8t_count_rows(
    const llama_hparams & hparams, const std::vector<so8t_site> & sites, int64_t n_blocks, int64_t * n_rows) {
    for (int g = 0; g < SO8T_GENERATOR_COUNT; ++g) {
        n_rows[g] = 0;
        if (std::find(sites.begin(), sites.end(), so8t_generator_rows[g].site) == sites.end()) {
            continue;
        }
        switch (so8t_per_of(g)) {
            case SO8T_PER_BLOCK:   n_rows[g] = n_blocks; break;
            case SO8T_PER_GROUP:   n_rows[g] = hparams.n_head() / SO8T_DIM; break;
            case SO8T_PER_HEAD:
            case SO8T_PER_HEAD_KV: n_rows[g] = 1; break;
            case SO8T_PER_COUNT:   GGML_ABORT("no such rotation");
        }
    }
}

static int64_t so8t_sum(const int64_t * n_rows) {
    return std::accumulate(n_rows, n_rows + SO8T_GENERATOR_COUNT, (int64_t) 0);
}

static void so8t_check_meta(const ggml_tensor * meta, const std::string & name) {
    if (meta->type != GGML_TYPE_F32) {
        throw std::runtime_error(
            format("so8t: tensor '%s' is %s, expected f32", name.c_str(), ggml_type_name(meta->type)));
    }
    if (meta->ne[1] < 1) {
        throw std::runtime_error(format("so8t: tensor '%s' has no rows, expected 1 or more", name.c_str()));
    }
}

ggml_tensor * so8t_create_generator(llama_model_base & model, llama_model_loader & ml, const LLM_TN_IMPL & tn) {
    const ggml_tensor * meta = ml.get_tensor_meta(tn.str().c_str());
    if (!meta) {
        return nullptr;
    }
    so8t_check_meta(meta, tn.str());
    return model.create_tensor(tn, {SO8T_N_GENERATORS, meta->ne[1]}, 0);
}

// version 1: a tensor for each
static void so8t_create_each(so8t_layer_generators & layer, llama_model_base & model, llama_model_loader & ml, int il) {
    for (int g = 0; g < SO8T_GENERATOR_COUNT; ++g) {
        const std::string suffix   = format(SO8T_TENSOR_LAYER_GEN, so8t_generator_rows[g].name);
        const ggml_tensor * tensor = so8t_create_generator(
            model, ml, LLM_TN(model.arch)(LLM_TENSOR_SO8T_LAYER, suffix.c_str(), il));
        if (tensor) {
            layer.tensors.push_back(tensor);
            layer.n_rows[g] = tensor->ne[1];
        }
    }
}

// version 2: one tensor, whose rows follow from the sites of the file
static void so8t_create_one(so8t_layer_generators & layer, llama_model_base & model, llama_model_loader & ml,
    const std::vector<so8t_site> & sites, int il) {
    const LLM_TN_IMPL tn     = LLM_TN(model.arch)(LLM_TENSOR_SO8T_LAYER, SO8T_TENSOR_LAYER_GENS, il);
    const std::string name   = tn.str();
    const ggml_tensor * meta = ml.get_tensor_meta(name.c_str());

    so8t_count_rows(model.hparams, sites, 1, layer.n_rows);
    const int64_t n_shared = so8t_sum(layer.n_rows);
    so8t_count_rows(model.hparams, sites, model.hparams.n_embd / SO8T_DIM, layer.n_rows);
    const int64_t n_own = so8t_sum(layer.n_rows);
    if (!meta && !ml.files.empty() && n_own > 0) {
        throw std::runtime_error(format("so8t: tensor '%s' is missing, expected the generators of the sites in "
                                        "'" SO8T_KV_ROTATION_EXPLICIT "' and '" SO8T_KV_ROTATION_FOLDED "'",
            name.c_str()));
    }
    if (meta) {
        so8t_check_meta(meta, name);
        if (meta->ne[1] != n_own && meta->ne[1] != n_shared) {
            const std::string expected = std::to_string(n_shared) +
                                         (n_shared == n_own ? "" : " or " + std::to_string(n_own));
            throw std::runtime_error(format("so8t: tensor '%s' has %" PRId64
                                            " rows, expected %s for the sites in '" SO8T_KV_ROTATION_EXPLICIT
                                            "' and '" SO8T_KV_ROTATION_FOLDED "'",
                name.c_str(), meta->ne[1], expected.c_str()));
        }
        if (meta->ne[1] == n_shared) {
            so8t_count_rows(model.hparams, sites, 1, layer.n_rows);
        }
    }
    if (n_own > 0) {
        layer.tensors.push_back(model.create_tensor(tn, {SO8T_N_GENERATORS, so8t_sum(layer.n_rows)}, 0));
    }
}

void so8t_create_generators(so8t_layer_generators & layer, llama_model_base & model, llama_model_loader & ml,
    const std::vector<so8t_site> & sites, int il) {
    if (so8t_kv_version(ml.metadata) < 2) {
        so8t_create_each(layer, model, ml, il);
    } else {
        so8t_create_one(layer, model, ml, sites, il);
    }
}

void so8t_read_generators(so8t_layer_generators & layer) {
    layer.rows.clear();
    for (const ggml_tensor * tensor : layer.tensors) {
        const size_t begin = layer.rows.size();
        layer.rows.resize(begin + ggml_nelements(tensor));
        ggml_backend_tensor_get(tensor, layer.rows.data() + begin, 0, ggml_nbytes(tensor));
    }
}

so8t_generator so8t_get_generator(const so8t_layer_generators & layer, so8t_generator_index index) {
    const int64_t begin = std::accumulate(layer.n_rows, layer.n_rows + index, (int64_t) 0);
    return {layer.rows.data() + begin * SO8T_N_GENERATORS, layer.n_rows[index]};
}

bool so8t_is_one_tensor(const so8t_layer_generators & layer) {
    int64_t n_blocks = 0;
    for (int g = 0; g < SO8T_GENERATOR_COUNT; ++g) {
        if (so8t_per_of(g) != SO8T_PER_BLOCK || layer.n_rows[g] == 0) {
            continue;
        }
        if (n_blocks != 0 && n_blocks != layer.n_rows[g]) {
            return false;
        }
        n_blocks = layer.n_rows[g];
    }
    return true;
}
