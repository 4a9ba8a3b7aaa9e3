#pragma once

#include "llama-model.h"

#include <cstdint>
#include <string>
#include <vector>

// base families, the rows of llama_so8t/format.py

struct so8t_size {
    llm_type type;
    double n_params;
};

struct so8t_family {
    const char * name; // architecture of its GGUF files
    bool qk_norm;      // a norm after the projections of q and k
    std::vector<so8t_size> sizes;
};

const std::vector<so8t_family> & so8t_families();

// null if it is none
const so8t_family * so8t_find_family(const std::string & name);

// The size of the family that is nearest to the number of parameters of a file; LLM_TYPE_UNKNOWN where none is within a
// factor of 1.3: published sizes are rounded that far (Llama 3.2 1B has 1.24e9).
llm_type so8t_model_type(const so8t_family & family, uint64_t n_params);
