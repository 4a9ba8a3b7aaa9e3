#pragma once

#include "llama-so8t-heads.h"

#include "llama-arch.h"

#include <cstdint>
#include <initializer_list>
#include <string>

struct llama_model;

// where the tensors of heads come from: the file of their model, or one beside it. Names are as in llama-arch, with what
// stands after the dot; all of them are F32.
class so8t_head_tensors {
  public:
    explicit so8t_head_tensors(const llama_model & model);
    virtual ~so8t_head_tensors() = default;

    // rows of a tensor; -1 where the file does not have it
    virtual int64_t n_rows(llm_tensor kind, const std::string & suffix) = 0;

    // a tensor of this shape, null where the file does not have it and it is not required; throws std::runtime_error
    virtual ggml_tensor * create(
        llm_tensor kind, const std::string & suffix, const std::initializer_list<int64_t> & ne, bool is_required) = 0;

    // of the model that the heads read
    const int64_t n_embd;
    const int64_t n_layer;
    const uint32_t n_vocab;
    const size_t first_stem; // stems before it belong to heads of other files
};

// adds the heads that a file names; throws std::runtime_error with the key or tensor that is wrong
void so8t_read_heads(const gguf_context * ctx, so8t_head_tensors & tensors, so8t_heads & result);

// the keys of one head, but for those that say what it reads and depends on; throws std::runtime_error
so8t_head so8t_load_head_keys(const gguf_context * ctx, const std::string & name, uint32_t n_vocab);

// the taps of a head; throws std::runtime_error
so8t_source so8t_load_source_keys(const gguf_context * ctx, const so8t_head & head, int64_t n_layer);

// throws std::runtime_error where there is a tensor and it is of another type
void so8t_check_f32(const ggml_tensor * tensor, const std::string & name);
