"""The model against its definition, written here once more in numpy float64 with loops over heads and blocks.

Of the package only tensor names are used: gamma matrices are the golden ones, the exponential is a series.
"""

import itertools
import math

import numpy as np
import pytest
from properties import assert_same_function
from required import package

torch = package("torch")


class Definition:
    """One sequence through an SO8T model. ``w`` maps tensor names to float64 arrays, ``c`` is config.json."""

    def __init__(self, w, c, gamma):
        self.w, self.c, self.gamma = w, c, gamma
        self.d, self.n_head, self.n_kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim = c.get("head_dim") or self.d // self.n_head

    def rotation(self, generator, t):
        a = np.zeros((8, 8))
        for coefficient, (i, j) in zip(generator, itertools.combinations(range(8), 2), strict=True):
            g_i, g_j = self.gamma[i], self.gamma[j]
            if t == 0:
                a[i, j] += coefficient
                a[j, i] -= coefficient
            else:
                a += coefficient / 2 * (g_i @ g_j.T if t == 1 else g_i.T @ g_j)
        # exp by scaling and squaring
        result, term = np.eye(8), np.eye(8)
        for n in range(1, 16):
            term = term @ (a / 2**10) / n
            result = result + term
        for _ in range(10):
            result = result @ result
        return result

    def rotate_blocks(self, x, generators, t=0):
        y = np.empty_like(x)
        for b in range(x.shape[-1] // 8):
            r = self.rotation(generators[b if len(generators) > 1 else 0], t)
            for token in range(len(x)):
                y[token, 8 * b : 8 * b + 8] = r @ x[token, 8 * b : 8 * b + 8]
        return y

    def rms_norm(self, x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * weight

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def rope(self, x):
        half = self.head_dim // 2
        theta = self.c["rope_parameters"]["rope_theta"]
        angle = np.arange(len(x))[:, None] * theta ** -(np.arange(half) / half)
        cos, sin, first, second = np.cos(angle), np.sin(angle), x[:, :half], x[:, half:]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)

    def head(self, x, index, generators=None, t=0, norm=None):
        x = x[:, index * self.head_dim : (index + 1) * self.head_dim]
        if norm in self.w:
            x = self.rms_norm(x, self.w[norm])
        return x if generators is None else self.rotate_blocks(x, generators, t)

    def attention(self, h, prefix, so8t):
        q, k, v = (self.linear(h, f"{prefix}.{name}_proj") for name in "qkv")
        qk, rep_q, rep_kv = self.w[so8t + "qk"], self.representation("head"), self.representation("head_kv")
        outputs = []
        for i in range(self.n_head):
            kv = i // (self.n_head // self.n_kv)
            query = self.rope(self.head(q, i, qk, rep_q[i], f"{prefix}.q_norm.weight"))
            key = self.rope(self.head(k, kv, qk, rep_kv[kv], f"{prefix}.k_norm.weight"))
            value = self.head(v, kv, self.w[so8t + "v"], rep_kv[kv])
            scores = query @ key.T / math.sqrt(self.head_dim)
            scores[np.triu_indices(len(h), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(weights / weights.sum(-1, keepdims=True) @ value)
        mixed = list(outputs)
        for g in range(self.n_head // 8):
            c = self.rotation(self.w[so8t + "heads"][g], 0)
            for i in range(8):
                mixed[8 * g + i] = sum(c[i, k] * outputs[8 * g + k] for k in range(8))
        return self.linear(np.concatenate(mixed, axis=-1), f"{prefix}.o_proj")

    def representation(self, kind):
        n = self.n_head if kind == "head" else self.n_kv
        return self.c[f"so8t_{kind}_representation"] or [index % 3 for index in range(n)]

    def hidden(self, tokens):
        x = self.w["model.embed_tokens.weight"][tokens]
        self.streams = []
        for layer in range(self.c["num_hidden_layers"]):
            self.streams.append(x)
            prefix = f"model.layers.{layer}."
            so8t = prefix + "so8t."
            h = self.rms_norm(x, self.w[prefix + "input_layernorm.weight"])
            h = self.rotate_blocks(h, self.w[so8t + "gate_safe"])
            h = self.rotate_blocks(h, self.w[so8t + "gate_cmd"])
            x = x + self.attention(h, prefix + "self_attn", so8t)
            m = self.rms_norm(x, self.w[prefix + "post_attention_layernorm.weight"])
            m = self.rotate_blocks(m, self.w[so8t + "ffn"])
            gate, up = self.linear(m, prefix + "mlp.gate_proj"), self.linear(m, prefix + "mlp.up_proj")
            x = x + self.linear(gate / (1 + np.exp(-gate)) * up, prefix + "mlp.down_proj")
        return self.rms_norm(x, self.w["model.norm.weight"])

    def look_back(self, z, stem, window):
        """A stem of the form attention, one token and one attention head after the other."""
        q, k, v = (self.linear(z, f"{stem}.attn_{name}") for name in "qkv")
        d = k.shape[1]
        read = np.zeros_like(q)
        for token in range(len(z)):
            first = max(0, token + 1 - window) if window else 0
            for start in range(0, q.shape[1], d):
                scores = np.exp([q[token, start : start + d] @ k[s] / math.sqrt(d) for s in range(first, token + 1)])
                read[token, start : start + d] = scores / scores.sum() @ v[first : token + 1]
        y = self.linear(read, f"{stem}.attn_output") + q
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6) * self.w[f"{stem}.norm.weight"]

    def read(self, head, f):
        parts = []
        for tap in head["taps"]:
            x = f if tap == -1 else self.streams[tap]
            if head["tap_norm"] == "rms":
                x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
            parts.append(self.rotate_blocks(x, self.w["so8t.out"], head["representation"]))
        return np.concatenate(parts, axis=-1)

    def verdicts(self, f):
        values = {}
        for name, head in self.c["so8t_heads"].items():
            z = self.read(head, f)
            if head.get("activation") == "attention":
                z = self.look_back(z, f"stems.{head['stem']}", head["sliding_window"])
            elif "stem" in head:
                stem = f"stems.{head['stem']}"
                z = self.linear(z, stem)
                if head["activation"] == "gelu":
                    z = z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2
                elif head["activation"] == "tanh":
                    z = np.tanh(z)
                else:
                    z = self.rms_norm(z, self.w[f"{stem}.norm.weight"])
            own = name in ("safety", "authority")
            values[name] = self.linear(z, f"{name}_head" if own else f"heads.{name}")
        return values


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "so8t_shared_blocks": True}),
        ("qwen3", {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("qwen3", {"so8t_head_representation": [2, 2, 1, 0, 0, 1, 1, 2, 0, 2], "tie_word_embeddings": True}),
        ("qwen2", {"so8t_head_kv_representation": [2, 0, 2, 1, 1]}),
    ],
)
def test_model_equals_its_definition(model, tokens, so8_golden, tolerance, head_forms, family, fields):
    m = model(family, **fields, **head_forms)
    with torch.no_grad():
        found = m(tokens)
    weights = {name: value.double().numpy() for name, value in m.state_dict().items()}
    definition = Definition(weights, m.config.to_dict(), np.array(so8_golden["G"]))
    for row, sequence in enumerate(tokens.numpy()):
        f = definition.hidden(sequence)
        logits = f @ weights["lm_head.weight"].T
        assert 0.5 < logits.std() < 5  # of size 1, so that an absolute tolerance means something
        assert_same_function(found.logits[row], logits, tolerance.float32)
        expected = definition.verdicts(f)
        assert_same_function({n: v[row] for n, v in found.head_logits.items()}, expected, tolerance.float32)
        assert all(0.1 < values.std() < 5 for values in expected.values())
