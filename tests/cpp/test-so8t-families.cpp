// which size of its family a model is

#include "so8t-families.h"

#include <cstdio>

static int n_passed = 0;
static int n_failed = 0;

static void expect(const char * family, double n_params, llm_type type) {
    const auto * found   = so8t_find_family(family);
    const llm_type model = found ? so8t_model_type(*found, (uint64_t) n_params) : LLM_TYPE_UNKNOWN;
    const bool passed    = found && model == type;
    (passed ? n_passed : n_failed)++;
    if (!passed) {
        std::printf("%s with %.3g parameters: found type %d, expected %d\n", family, n_params, model, type);
    }
}

int main() {
    // numbers of parameters of published models, without an output matrix that is the embedding
    expect("qwen3", 0.596e9, LLM_TYPE_0_6B);
    expect("qwen3", 1.721e9, LLM_TYPE_1_7B);
    expect("qwen3", 2.032e9, LLM_TYPE_1_7B); // the embedding written twice
    expect("qwen3", 4.022e9, LLM_TYPE_4B);
    expect("qwen3", 8.191e9, LLM_TYPE_8B);
    expect("qwen3", 14.77e9, LLM_TYPE_14B);
    expect("qwen3", 32.76e9, LLM_TYPE_32B);
    expect("llama", 1.236e9, LLM_TYPE_1B);
    expect("llama", 3.213e9, LLM_TYPE_3B); // 28 layers, as Qwen3-1.7B
    expect("llama", 6.738e9, LLM_TYPE_7B); // Llama 2, of the layers and width of Llama 3 8B
    expect("llama", 7.248e9, LLM_TYPE_7B); // Mistral
    expect("llama", 8.030e9, LLM_TYPE_8B);
    expect("llama", 65.29e9, LLM_TYPE_65B);
    expect("llama", 70.55e9, LLM_TYPE_70B);
    expect("qwen2", 0.494e9, LLM_TYPE_0_5B);
    expect("qwen2", 1.544e9, LLM_TYPE_1_5B);
    expect("qwen2", 3.086e9, LLM_TYPE_3B); // 36 layers, as Qwen3-8B
    expect("qwen2", 7.616e9, LLM_TYPE_7B); // 28 layers, as Qwen3-1.7B
    expect("qwen2", 72.71e9, LLM_TYPE_70B);
    // of no known size
    expect("qwen3", 1e6, LLM_TYPE_UNKNOWN);
    expect("llama", 0.135e9, LLM_TYPE_UNKNOWN);
    expect("llama", 20e9, LLM_TYPE_UNKNOWN);
    expect("qwen2", 0, LLM_TYPE_UNKNOWN); // a model that comes from no file

    (so8t_find_family("phi3") ? n_failed : n_passed)++;
    std::printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
