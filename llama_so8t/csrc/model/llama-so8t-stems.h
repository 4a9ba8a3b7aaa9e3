#pragma once

#include "llama-so8t-heads.h"

#include <vector>

// all forms
const std::vector<so8t_stem_form> & so8t_stem_forms();

// writes values of every token into the cells of the memory, [n_stored, n_tokens]
void so8t_store_values(llm_graph_context & llm, ggml_tensor * values);
