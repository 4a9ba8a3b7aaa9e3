#pragma once

#include "ggml.h"
#include "gguf.h"

// what upstream's test-llama-archs needs to make random models of the arch so8t: metadata that puts every
// site into the graph and two heads on top, and rotations that belong to their generators

void so8t_fixture_kv(gguf_context * ctx);

// fills a rotation or generator tensor; false for every other tensor
bool so8t_fixture_data(ggml_tensor * tensor);
