#pragma once

struct gguf_context;
struct llama_model;

// call site in llama.cpp, in llama_model_saver: the keys and tensors of rotations and heads
void so8t_save(const llama_model & model, gguf_context * ctx);
