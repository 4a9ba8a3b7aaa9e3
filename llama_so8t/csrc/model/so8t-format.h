#pragma once

// names of the GGUF format, the C++ twin of llama_so8t/format.py (docs/format.md)

#define SO8T_FORMAT_VERSION 1

// keys; head keys keep the literal prefix so8t. in every architecture
#define SO8T_KV_FORMAT_VERSION              "so8t.format_version"
#define SO8T_KV_BASE_ARCHITECTURE           "so8t.base_architecture"
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
#define SO8T_KV_HEAD_PROMPT_TOKEN           "so8t.head.%s.prompt_token"

// tensors, always F32. The part before the first dot is registered in llama-arch (LLM_TENSOR_SO8T_*),
// the suffixes below follow it.
#define SO8T_TENSOR_LAYER_GEN "so8t_%s_gen.weight" // after "blk.N." [28, n]
#define SO8T_TENSOR_LAYER_ROT "so8t_%s_rot.weight" // after "blk.N." [8, 8, n], element [j, i, b] = R_b[i][j]
#define SO8T_TENSOR_OUT_GEN   "weight"             // after "so8t_out_gen." [28, nb]
#define SO8T_TENSOR_WEIGHT    "%s.weight"          // after "so8t_head." [d or inner, labels], "so8t_stem." [d, inner]
#define SO8T_TENSOR_BIAS      "%s.bias"            // after "so8t_head." [labels], "so8t_stem." [inner]
#define SO8T_TENSOR_NORM      "%s.norm.weight"     // after "so8t_stem." [inner]

// sites, as in the rotation.explicit and rotation.folded arrays
#define SO8T_SITE_GATE  "gate"
#define SO8T_SITE_QK    "qk"
#define SO8T_SITE_V     "v"
#define SO8T_SITE_HEADS "heads"
#define SO8T_SITE_FFN   "ffn"
