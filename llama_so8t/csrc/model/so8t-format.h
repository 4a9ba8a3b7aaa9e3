#pragma once

#include <cstdint>

// Names and rows of the GGUF format (docs/format.md), from llama_so8t/format.py: `make format-header`
// writes this file. Do not edit it.

// clang-format off

#define SO8T_FORMAT_VERSION 2
#define SO8T_MAX_LABELS     4096 // of a head
#define SO8T_MAX_DEBOUNCE   65536
#define SO8T_TAP_FINAL_NORM (-1)
#define SO8T_HEADS_TYPE     "heads" // general.type of a heads file
#define SO8T_TAP_NORM_EPS   1e-06f

// keys; those of verdict heads, HEAD_*, keep the literal prefix so8t. in every architecture
#define SO8T_KV_FORMAT_VERSION              "so8t.format_version"
#define SO8T_KV_BASE_ARCHITECTURE           "so8t.base_architecture"
#define SO8T_KV_BASE_SHA256                 "so8t.base_sha256"
#define SO8T_KV_ROTATION_DIMENSION          "so8t.rotation.dimension"
#define SO8T_KV_ROTATION_EXPLICIT           "so8t.rotation.explicit"
#define SO8T_KV_ROTATION_FOLDED             "so8t.rotation.folded"
#define SO8T_KV_ATTN_HEAD_REPRESENTATION    "so8t.attention.head_representation"
#define SO8T_KV_ATTN_HEAD_KV_REPRESENTATION "so8t.attention.head_kv_representation"
#define SO8T_KV_HEADS                       "so8t.heads"
#define SO8T_KV_HEAD_LABELS                 "so8t.head.%s.labels"
#define SO8T_KV_HEAD_ACTIONS                "so8t.head.%s.actions"
#define SO8T_KV_HEAD_THRESHOLDS             "so8t.head.%s.thresholds"
#define SO8T_KV_HEAD_TEMPERATURE            "so8t.head.%s.temperature"
#define SO8T_KV_HEAD_DEBOUNCE               "so8t.head.%s.debounce"
#define SO8T_KV_HEAD_REPRESENTATION         "so8t.head.%s.representation"
#define SO8T_KV_HEAD_ACTIVATION             "so8t.head.%s.activation"
#define SO8T_KV_HEAD_STEM                   "so8t.head.%s.stem"
#define SO8T_KV_HEAD_SCOPE                  "so8t.head.%s.scope"
#define SO8T_KV_HEAD_RULE                   "so8t.head.%s.rule"
#define SO8T_KV_HEAD_PROMPT_TOKEN           "so8t.head.%s.prompt_token"
#define SO8T_KV_HEAD_TAPS                   "so8t.head.%s.taps"
#define SO8T_KV_HEAD_TAP_NORM               "so8t.head.%s.tap_norm"
#define SO8T_KV_HEAD_FORM                   "so8t.head.%s.form"
#define SO8T_KV_HEAD_LINK                   "so8t.head.%s.link"
#define SO8T_KV_HEAD_SLIDING_WINDOW         "so8t.head.%s.sliding_window"
#define SO8T_KV_HEAD_AGGREGATION            "so8t.head.%s.aggregation"
#define SO8T_KV_HEAD_EMA_ALPHA              "so8t.head.%s.ema_alpha"
#define SO8T_KV_HEAD_WINDOW                 "so8t.head.%s.window"
#define SO8T_KV_HEAD_PROMPT_AGGREGATION     "so8t.head.%s.prompt_aggregation"
#define SO8T_KV_HEAD_PROMPT_THRESHOLDS      "so8t.head.%s.prompt_thresholds"
#define SO8T_KV_HEAD_DEPENDS_ON             "so8t.head.%s.depends_on"
#define SO8T_KV_HEAD_PROVENANCE             "so8t.head.%s.provenance"
#define SO8T_KV_LORA_FOLDED                 "so8t.lora.folded"
#define SO8T_KV_HEAD_PREFIX                 "so8t.head."

// keys of a head: what stands after its name, and the first version that has it; any other is an error
struct so8t_head_key_row {
    const char * field;
    uint32_t     since;
};

inline constexpr so8t_head_key_row so8t_head_key_rows[] = {
    {"labels", 1},
    {"actions", 1},
    {"thresholds", 1},
    {"temperature", 1},
    {"debounce", 1},
    {"representation", 1},
    {"activation", 1},
    {"stem", 1},
    {"scope", 1},
    {"rule", 1},
    {"prompt_token", 1},
    {"taps", 2},
    {"tap_norm", 2},
    {"form", 2},
    {"link", 2},
    {"sliding_window", 2},
    {"aggregation", 2},
    {"ema_alpha", 2},
    {"window", 2},
    {"prompt_aggregation", 2},
    {"prompt_thresholds", 2},
    {"depends_on", 2},
    {"provenance", 2},
};

// tensors, always F32. The part before the first dot is registered in llama-arch (LLM_TENSOR_SO8T_*),
// the suffixes below follow it.
#define SO8T_TENSOR_LAYER_GENS  "so8t_gen.weight"       // after "blk.N." [28, n of all generators of the layer]
#define SO8T_TENSOR_LAYER_GEN   "so8t_%s_gen.weight"    // after "blk.N." [28, n], in files of version 1
#define SO8T_TENSOR_LAYER_ROT   "so8t_%s_rot.weight"    // after "blk.N." [8, 8, n], element [j, i, b] = R_b[i][j]
#define SO8T_TENSOR_OUT_GEN     "weight"                // after "so8t_out_gen." [28, nb]
#define SO8T_TENSOR_WEIGHT      "%s.weight"             // after "so8t_head." [n, labels], "so8t_stem." [n, inner], n: taps * d or inner
#define SO8T_TENSOR_BIAS        "%s.bias"               // after "so8t_head." [labels], "so8t_stem." [inner]
#define SO8T_TENSOR_NORM        "%s.norm.weight"        // after "so8t_stem." [inner]
#define SO8T_TENSOR_ATTN_Q      "%s.attn_q.weight"      // after "so8t_stem." [n, n_head * head_dim = inner]
#define SO8T_TENSOR_ATTN_K      "%s.attn_k.weight"      // after "so8t_stem." [n, head_dim]
#define SO8T_TENSOR_ATTN_V      "%s.attn_v.weight"      // after "so8t_stem." [n, head_dim]
#define SO8T_TENSOR_ATTN_OUTPUT "%s.attn_output.weight" // after "so8t_stem." [inner, inner]

// how many matrices a rotation has: one for each block of 8 of the hidden vector, or one for all of them;
// one for each group of 8 attention heads; one for each head or key-value head, in its representation
enum so8t_per {
    SO8T_PER_BLOCK,
    SO8T_PER_GROUP,
    SO8T_PER_HEAD,
    SO8T_PER_HEAD_KV,
    SO8T_PER_COUNT,
};

// sites inside a layer, in the order of the data flow
enum so8t_site {
    SO8T_SITE_GATE,
    SO8T_SITE_QK,
    SO8T_SITE_V,
    SO8T_SITE_HEADS,
    SO8T_SITE_FFN,
    SO8T_SITE_COUNT,
};

inline constexpr const char * so8t_site_names[] = {"gate", "qk", "v", "heads", "ffn"};

// generators of a layer, in the order in which they stand in its one tensor
enum so8t_generator_index {
    SO8T_GENERATOR_GATE_SAFE,
    SO8T_GENERATOR_GATE_CMD,
    SO8T_GENERATOR_QK,
    SO8T_GENERATOR_V,
    SO8T_GENERATOR_HEADS,
    SO8T_GENERATOR_FFN,
    SO8T_GENERATOR_COUNT,
};

struct so8t_generator_row {
    const char * name;
    so8t_site    site;
};

inline constexpr so8t_generator_row so8t_generator_rows[] = {
    {"gate_safe", SO8T_SITE_GATE},
    {"gate_cmd", SO8T_SITE_GATE},
    {"qk", SO8T_SITE_QK},
    {"v", SO8T_SITE_V},
    {"heads", SO8T_SITE_HEADS},
    {"ffn", SO8T_SITE_FFN},
};

// rotation tensors of a layer, in the order in which they act, and the generators that they are made from
enum so8t_rotation_index {
    SO8T_ROTATION_GATE_SAFE,
    SO8T_ROTATION_GATE_CMD,
    SO8T_ROTATION_Q,
    SO8T_ROTATION_K,
    SO8T_ROTATION_V,
    SO8T_ROTATION_HEADS,
    SO8T_ROTATION_FFN,
    SO8T_ROTATION_COUNT,
};

struct so8t_rotation_row {
    const char *         name;
    so8t_generator_index generator;
    so8t_per             per;
};

inline constexpr so8t_rotation_row so8t_rotation_rows[] = {
    {"gate_safe", SO8T_GENERATOR_GATE_SAFE, SO8T_PER_BLOCK},
    {"gate_cmd", SO8T_GENERATOR_GATE_CMD, SO8T_PER_BLOCK},
    {"q", SO8T_GENERATOR_QK, SO8T_PER_HEAD},
    {"k", SO8T_GENERATOR_QK, SO8T_PER_HEAD_KV},
    {"v", SO8T_GENERATOR_V, SO8T_PER_HEAD_KV},
    {"heads", SO8T_GENERATOR_HEADS, SO8T_PER_GROUP},
    {"ffn", SO8T_GENERATOR_FFN, SO8T_PER_BLOCK},
};

// weights of a layer into which a rotation is folded, and the generator that the rotation is made from
struct so8t_folded_row {
    const char *         weight;
    so8t_generator_index generator;
};

inline constexpr so8t_folded_row so8t_folded_rows[] = {
    {"attn_q.weight", SO8T_GENERATOR_GATE_SAFE},
    {"attn_k.weight", SO8T_GENERATOR_GATE_SAFE},
    {"attn_v.weight", SO8T_GENERATOR_GATE_SAFE},
    {"attn_q.weight", SO8T_GENERATOR_GATE_CMD},
    {"attn_k.weight", SO8T_GENERATOR_GATE_CMD},
    {"attn_v.weight", SO8T_GENERATOR_GATE_CMD},
    {"attn_q.weight", SO8T_GENERATOR_QK},
    {"attn_k.weight", SO8T_GENERATOR_QK},
    {"attn_v.weight", SO8T_GENERATOR_V},
    {"attn_output.weight", SO8T_GENERATOR_HEADS},
    {"ffn_gate.weight", SO8T_GENERATOR_FFN},
    {"ffn_up.weight", SO8T_GENERATOR_FFN},
};

// base families: X(name, whether it has a norm after q and k, {type, parameters} of its known sizes...)
#define SO8T_FAMILIES(X) \
    X("qwen3", true, {LLM_TYPE_0_6B, 0.6e9}, {LLM_TYPE_1_7B, 1.7e9}, {LLM_TYPE_4B, 4e9}, {LLM_TYPE_8B, 8e9}, {LLM_TYPE_14B, 14e9}, {LLM_TYPE_32B, 32e9}) \
    X("llama", false, {LLM_TYPE_360M, 360e6}, {LLM_TYPE_1B, 1e9}, {LLM_TYPE_1_7B, 1.7e9}, {LLM_TYPE_3B, 3e9}, {LLM_TYPE_7B, 7e9}, {LLM_TYPE_8B, 8e9}, {LLM_TYPE_13B, 13e9}, {LLM_TYPE_34B, 34e9}, {LLM_TYPE_65B, 65e9}, {LLM_TYPE_70B, 70e9}, {LLM_TYPE_405B, 405e9}) \
    X("qwen2", false, {LLM_TYPE_0_5B, 0.5e9}, {LLM_TYPE_1_5B, 1.5e9}, {LLM_TYPE_3B, 3e9}, {LLM_TYPE_7B, 7e9}, {LLM_TYPE_14B, 14e9}, {LLM_TYPE_32B, 32e9}, {LLM_TYPE_70B, 70e9})

// stems: X(activation, form, whether there is a norm); a head without a stem has the activation below
#define SO8T_STEM_FORMS(X) \
    X(gelu, MLP, false) \
    X(tanh, MLP, false) \
    X(rmsnorm, MLP, true) \
    X(attention, ATTENTION, true)

#define SO8T_ACTIVATION_WITHOUT_STEM "none"

// values of enum llama_so8t_action; of enum llama_so8t_scope, less one; of enum llama_so8t_rule
inline constexpr const char * so8t_action_names[] = {"allow", "escalate", "refuse"};

inline constexpr const char * so8t_scope_names[] = {"prompt", "answer", "both"};

inline constexpr const char * so8t_rule_names[] = {"threshold", "argmax"};

// values of enum llama_so8t_form, of enum llama_so8t_tap_norm, of enum llama_so8t_link
inline constexpr const char * so8t_form_names[] = {"linear", "mlp", "attention"};

inline constexpr const char * so8t_tap_norm_names[] = {"none", "rms"};

inline constexpr const char * so8t_link_names[] = {"softmax", "sigmoid"};

// values of enum llama_so8t_aggregation, of enum llama_so8t_prompt_aggregation
inline constexpr const char * so8t_aggregation_names[] = {"run", "window", "ema", "mean", "max"};

inline constexpr const char * so8t_prompt_aggregation_names[] = {"token", "mean", "ema", "max", "window8", "window16"};

// clang-format on
