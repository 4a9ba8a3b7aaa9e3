#pragma once

#include <cstddef>

struct ggml_tensor;
struct llama_model;
struct so8t_heads;

// call site in llama.cpp, after all data is loaded: throws std::runtime_error where a rotation is not in SO(8), or is not
// exp of its stored generator, or a head or stem has a value that is not finite. Generators are not among model.tensors_by_name from here on. Heads whose weights are all
// zeros are marked as not fitted.
void so8t_finish_load(llama_model & model);

// after the data of heads is loaded, from these indices on: throws std::runtime_error where a head or stem has a value that
// is not finite. so8t init writes heads of zeros, whose values say nothing of a text: they are marked as not fitted.
void so8t_finish_heads(so8t_heads & heads, size_t first_stem, size_t first_head);
