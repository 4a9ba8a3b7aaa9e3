#pragma once

struct gguf_context;
struct llama_model;

// call site in llama.cpp, before a LoRA adapter is loaded: throws std::runtime_error where it is not one for this model.
// A file of ours takes none on heads, stems or rotations, and none that was made beside rotations for weights into which
// they are folded: a product with A and B would stand beside turned weights. Files of others have llama.cpp's own checks.
void so8t_check_adapter(const llama_model & model, const gguf_context * adapter);
