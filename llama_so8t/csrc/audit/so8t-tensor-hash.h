#pragma once

#include <functional>
#include <string>

// SHA-256 over the tensors of a GGUF file, or of a split model given by its first part, in the order of their names,
// bytewise. Each gives name 0 type 0 dims 0 SHA-256(data): the type as ggml prints it, in lower case; dims in ggml
// order, joined by commas, without 1s at the end (but at least one); the digest as 32 raw bytes. On all cores.
// Equals model_sha256 of llama_so8t/files/tensor_hash.py. counts: whether a tensor does, by its name; null: all do.
// Throws std::runtime_error.
std::string so8t_tensor_hash(
    const std::string & path, const std::function<bool(const std::string & name)> & counts = nullptr);

// SHA-256 of the bytes of a file, in hex. Throws std::runtime_error: it cannot be read.
std::string so8t_file_hash(const std::string & path);
