#pragma once

#include "so8t-format.h"

#include "llama-arch.h"

#include <cstdint>
#include <vector>

struct ggml_tensor;
struct llama_model_loader;
struct llama_model_base;

// one generator of a layer: n rows of 28 coefficients, in the memory of the layer; n is 0 where the layer has none
struct so8t_generator {
    const float * data = nullptr;
    int64_t n          = 0;
};

// The generators of one layer. A file of version 2 has them in one tensor, a file of version 1 has a tensor for each:
// only llama-so8t-generators.cpp knows the difference.
struct so8t_layer_generators {
    std::vector<const ggml_tensor *> tensors;  // those of the file
    int64_t n_rows[SO8T_GENERATOR_COUNT] = {}; // of each generator
    std::vector<float> rows; // [28, n of all] in the order of so8t_generator_rows, after the data is loaded
};

// Creates the tensors that the file has for the generators of layer il, with these sites; a model that comes from no file
// gets those of version 2. Throws std::runtime_error where one is missing or has other rows than the sites need.
void so8t_create_generators(so8t_layer_generators & layer, llama_model_base & model, llama_model_loader & ml,
    const std::vector<so8t_site> & sites, int il);

// creates a generator that stands alone, as the file has it; null if it has none
ggml_tensor * so8t_create_generator(llama_model_base & model, llama_model_loader & ml, const LLM_TN_IMPL & tn);

// copies the rows from the tensors, whose data is loaded
void so8t_read_generators(so8t_layer_generators & layer);

so8t_generator so8t_get_generator(const so8t_layer_generators & layer, so8t_generator_index index);

// whether a layer has these rows in a form that a file of version 2 can have: generators of blocks have as many rows each
bool so8t_is_one_tensor(const so8t_layer_generators & layer);
