"""Tensors of every published layout by name and shape, as upstream's modules name them (width 64, two layers)."""

GATE = (8, 8, 8)

TENSORS = {
    "L0": {
        "model.layers.0.self_attn.so8_rotations": (4, 8, 8),
        "model.layers.0.self_attn.rotary_emb.rotation_matrix": (8, 8),
        "model.layers.0.mlp.group_rotation": (8, 8),
        "task_head.weight": (320, 64),
        "safety_head.weight": (2, 64),
    },
    "L1": {
        "model.layers.0.group_structure.non_commutative_gate.R_safe.rotation_params": (8, 8),
        "model.layers.0.group_structure.non_commutative_gate.R_cmd.rotation_angles": (8,),
        "model.layers.0.group_structure.non_commutative_gate.safety_weight": (1,),
    },
    "L2": {
        "base_model.model.embed_tokens.weight": (320, 64),
        "group_structure.non_commutative_gate.R_safe.rotation_params": (8, 8),
        "group_structure.non_commutative_gate.R_cmd.rotation_params": (8, 8),
        "task_head_a.0.weight": (4096, 64),
        "safety_head_b.0.weight": (2048, 64),
    },
    "L3": {
        "rotation_matrices": (8, 8),
        "safety_encoder.0.weight": (16, 64),
        "safety_classifier.weight": (4, 16),
        "confidence_estimator.0.weight": (1, 16),
        "pattern_embeddings": (10, 64),
    },
    "L4": {
        "model.layers.0.self_attn.base_attention.q_proj.weight": (128, 64),
        "model.layers.0.self_attn.rotation_gate.theta": GATE,
    },
    "L5": {"rotation_gates.layer_0.theta": GATE, "rotation_gates.layer_1.theta": GATE},
    "L6a": {"model.layers.0.self_attn.so8t_gate.theta": GATE, "model.layers.1.self_attn.so8t_gate.theta": GATE},
    "L6b": {"model.layers.0.self_attn.o_proj.so8t_rotation_gate.theta": GATE},
    "L6c": {
        "model.layers.0.self_attn.attention.q_proj.weight": (128, 64),
        "model.layers.0.self_attn.output_gate.theta": GATE,
        "model.layers.0.self_attn.key_gate.theta": GATE,
    },
    "L7": {
        "layers.0.ln_1.weight": (64,),
        "layers.0.attn.theta": GATE,
        "layers.0.ff.fc1.weight": (256, 64),
        "position_embeddings.weight": (128, 64),
    },
    "L8": {"theta": GATE},
    "L9": {
        "so8t_adapters.0.A_params": (8, 8),
        "so8t_adapters.0.strength": (),
        "so8t_adapters.0.proj.weight": (8, 64),
        "so8_rotation_gate.theta": GATE,
        "alpha_gate": (),
        "safety_head.0.weight": (6, 12),
        "safety_head.2.bias": (3,),
        "verifier_head.2.weight": (1, 6),
    },
    "L10": {
        "so8vit_adapter.so8_gates.0.rotation_matrix": (8, 8),
        "so8vit_adapter.so8_gates.0.gate_weight": (1,),
        "so8vit_adapter.thinking_alpha": (),
    },
    "L11": {
        "nkat_adapters.0.so8_raw": GATE,
        "nkat_adapters.0.decay_params": (8, 8),
        "nkat_adapters.0.alpha_gate.alpha": (),
        "nkat_adapters.0.mixing.weight": (64, 64),
    },
    "L12": {
        "so8t.layers.0.geometric_attention.rotation_gate.rotation_params": (4, 28),
        "so8t.layers.0.geometric_attention.rotation_gate.triality_W": (4, 3, 16, 16),
        "so8t.layers.0.geometric_attention.rotation_gate.layer_norm.weight": (64,),
    },
    "L13": {"rotation_params": (28,)},
    "L14": {
        "so8_rotation.parametrizations.weight.original": (64, 64),
        "so8_rotation.parametrizations.weight.0.base": (64, 64),
    },
    "L15": {"model.layers.4.self_attn.so8t_rotation_gate.theta": GATE},
    "L16": {
        "model.layers.0.so8_rotation.theta": GATE,
        "model.layers.0.non_commutative.weight": (64, 64),
        "model.layers.0.so8t_mlp.gate.weight": (64, 64),
        "safety_judge.weight": (3, 64),
    },
    "L17": {"transformer.adapter.skew_matrix": (8, 8), "so8t_residual.weight": (8, 8)},
}
