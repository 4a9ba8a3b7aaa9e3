"""A model that does what a test says: a finite automaton over tokens, as a GGUF file of a few hundred kB.

    file = scripted_gguf(
        tmp_path / "model",
        scripts={"start": ["one ", "two ", "bad ", "three"]},   # last token of the prompt -> answer, then its end
        heads={"safety": Head(["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9], debounce=2,
                              tokens={"bad ": {"unsafe": 0.97}, "broken": NAN})},
    )

Every string of a script or table is one token, longest match first, and prints as it is written (mind the spaces).
Any other text has tokens too; they and the last token of a chain are followed by the end of the answer. A token has
one successor: a chain that returns to a token of its own goes round for ever, and two chains that disagree are an
error. Greedy decoding follows the chain, sampling at temperature 1 too (all other tokens together: below 1e-20);
under a grammar that forbids the next token comes the one with the lowest id.
Probabilities of a head are exact to 1e-6; labels that are not named share what is left; `INF` and `NAN` make its
values overflow in the product, with finite weights. "<think>" and "</think>" are tokens that print, as in Qwen3.
"<0xC3>" is the byte C3: a character of several bytes is a chain of such tokens.
With `CHATML` the last token of a prompt is "\n" (or what follows it: name them in `scripts`); with `WORDS` the prompt
is the contents of the messages, so it ends as the user's last word says.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import sentencepiece
from tiny_models import VOCABULARY_SIZE, base_config, stored, tokenizer_model

from llama_so8t.checkpoint import adapter
from llama_so8t.checkpoint.names import EMBEDDING, OUTPUT, base_tensors, so8t_tensors
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.files import safetensors_writer
from llama_so8t.format import HeadSpec, head_tensor_prefix
from llama_so8t.model_spec import ModelSpec

INF, NAN = math.inf, math.nan

START, END = "<|im_start|>", "<|im_end|>"
CONTROL = (START, END)
THINK = ("<think>", "</think>")

_REASONING = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n" + _REASONING + "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "{% for m in messages %}" + _REASONING + "{{ m.content }}{% endfor %}"

CONTEXT = 2048
_NEXT = 60.0  # logit of the next token
_SLOPE = -1e-3  # of the others: where a grammar forbids the next token, the lowest id it allows comes
_HUGE = 3e38  # finite in float32; times a hidden value above 1.2 it is not


@dataclass(frozen=True)
class Head:
    """A classification head by table: token -> label -> probability, or `INF` or `NAN` for values that overflow."""

    labels: Sequence[str]
    actions: Sequence[str]
    thresholds: Sequence[float]
    debounce: int = 1
    scope: str = "both"
    rule: str = "threshold"
    temperature: float = 1.0
    tokens: Mapping[str, Mapping[str, float] | float] = field(default_factory=dict)
    default: Mapping[str, float] | None = None
    """For all other tokens; None: the first label has 0.99."""
    prompt_token: str | None = None
    fitted: bool = True
    """False: all weights are zeros, whatever the table says."""
    link: str = "softmax"
    """With sigmoid a label that is not named has 0.01, and several may hold."""
    aggregation: str = "run"
    ema_alpha: float | None = None
    window: int | None = None
    depends_on: str | None = None
    prompt_aggregation: Sequence[str] = ("token",)
    prompt_thresholds: Sequence[float] | None = None
    """Of each way and label, row after row."""

    def spec(self, name: str, ids: Mapping[str, int]) -> HeadSpec:
        """What the checkpoint says of it."""
        return HeadSpec(
            name, tuple(self.labels), tuple(self.actions), tuple(self.thresholds), debounce=self.debounce,
            scope=self.scope, rule=self.rule, temperature=self.temperature, link=self.link,
            aggregation=self.aggregation, ema_alpha=self.ema_alpha, window=self.window, depends_on=self.depends_on,
            prompt_aggregation=tuple(self.prompt_aggregation),
            prompt_thresholds=None if self.prompt_thresholds is None else tuple(self.prompt_thresholds),
            # the embedding after its norm is the state after the final norm: nothing is added to it
            **({"taps": (0,), "tap_norm": "rms"} if tuple(self.prompt_aggregation) != ("token",) else {}),
            prompt_token=None if self.prompt_token is None else ids[self.prompt_token],
        )  # fmt: skip

    def probabilities(self, given: Mapping[str, float] | None) -> np.ndarray:
        """All probabilities, ``(n_labels,)``, of a token whose table entry is ``given``."""
        if not self.fitted:
            return np.full(len(self.labels), 1 / len(self.labels))
        given = {self.labels[0]: 0.99} if given is None else given
        if self.link == "sigmoid":
            return np.array([given.get(label, 0.01) for label in self.labels])
        assert set(given) <= set(self.labels), f"found labels {sorted(given)}, expected some of {self.labels}"
        n_open, rest = len(self.labels) - len(given), 1.0 - sum(given.values())
        assert rest >= -1e-9 and (n_open or rest < 1e-9), f"found probabilities {given}, expected a sum of 1"
        return np.array([given.get(label, rest / max(n_open, 1)) for label in self.labels])

    def values(self, given: Mapping[str, float] | None) -> np.ndarray:
        """Values of the head whose link over the temperature gives `probabilities`, ``(n_labels,)``."""
        p = np.clip(self.probabilities(given), 1e-12, 1.0 if self.link == "softmax" else 1 - 1e-12)
        return self.temperature * (np.log(p) if self.link == "softmax" else np.log(p / (1 - p)))

    def link_of(self, values: np.ndarray) -> np.ndarray:
        """Probabilities of such values."""
        powers = np.exp(values / self.temperature)
        return powers / (powers.sum() if self.link == "softmax" else 1 + powers)


def scripted_gguf(
    directory: Path, scripts: Mapping[str, Sequence[str]], heads: Mapping[str, Head], template: str = WORDS
) -> Path:
    """Writes the checkpoint into ``directory`` and beside it the GGUF file, which is returned."""
    file = directory.with_suffix(".gguf")
    model = scripted_checkpoint(directory, scripts, heads, template)
    convert(ConvertOptions(model=model, outfile=file, outtype="f32", rotations="fold", progress=False))
    return file


def scripted_checkpoint(
    directory: Path, scripts: Mapping[str, Sequence[str]], heads: Mapping[str, Head], template: str = WORDS
) -> Path:
    """Writes an SO8T checkpoint of one layer whose attention and MLP add nothing to the embedding.

    Tokens of scripts and tables have an axis each, the others share axis 0, so ``f = norm(embedding)`` has one
    component (two where the values of a head are to be NaN), and each column of a matrix is the row of a table.
    """
    successors = _successors(scripts)
    named = [*successors, *successors.values(), *(token for head in heads.values() for token in head.tokens)]
    marks = [head.prompt_token for head in heads.values() if head.prompt_token is not None]
    tokens = list(dict.fromkeys([*CONTROL, *THINK, *named, *marks]))
    ids = _token_ids(tokens)
    axes = {token: index + 1 for index, token in enumerate(tokens)}
    both = len(tokens) + 1  # second axis of tokens with NaN
    d = -(-(both + 1) // 64) * 64
    config = _config(max(ids.values()) + 1, d, ids, heads)
    spec = ModelSpec.from_config(config)

    embedding = np.zeros((config["vocab_size"], d))
    embedding[:, 0] = 1.0
    for token in tokens:
        embedding[ids[token], 0] = 0.0
        embedding[ids[token], axes[token]] = 1.0
        if any(_is_nan(head.tokens.get(token)) for head in heads.values()):
            embedding[ids[token], both] = 1.0
    hidden = embedding / np.sqrt((embedding**2).mean(1, keepdims=True) + config["rms_norm_eps"])  # f
    component = {token: hidden[ids[token], axes[token]] for token in tokens}

    output = np.zeros((config["vocab_size"], d))
    output[:, :both] = _SLOPE * np.arange(config["vocab_size"])[:, None]
    output[ids[END], 0] = _NEXT / hidden[0, 0]
    for token in tokens:
        output[ids[successors.get(token, END)], axes[token]] = _NEXT / component[token]

    weights = {EMBEDDING: embedding, OUTPUT: output, "model.norm.weight": np.ones(d)}
    for name, head in heads.items():
        weight = np.zeros((len(head.labels), d))
        weight[:, 0] = head.values(head.default) / hidden[0, 0]
        for token in tokens:
            given = head.tokens.get(token, head.default)
            if isinstance(given, float) and head.fitted:
                weight[0, axes[token]] = _HUGE
                weight[0, both] = -_HUGE if math.isnan(given) else weight[0, both]
            else:
                weight[:, axes[token]] = head.values(given) / component[token]
        weight *= head.fitted
        weights[f"{head_tensor_prefix(name)}.weight"] = weight
    _write(directory, config, spec, weights, ids, template)
    return directory


def _successors(scripts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    successors: dict[str, str] = {}
    for start, chain in scripts.items():
        path = [start, *chain]
        if path[-1] not in path[:-1]:
            path.append(END)
        for token, following in pairwise(path):
            known = successors.setdefault(token, following)
            assert known == following, f"{token!r} is followed by {known!r} and by {following!r}"
    return successors


def _token_ids(tokens: Sequence[str]) -> dict[str, int]:
    """Bytes are in the tokenizer, all others are added to it."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model())
    pieces = {tokenizer.id_to_piece(index): index for index in range(tokenizer.get_piece_size())}
    ids: dict[str, int] = {}
    for token in tokens:
        known = pieces.get(token.replace(" ", "\u2581"))
        assert known is None or tokenizer.is_byte(known), f"{token!r} is a token of the tokenizer, take another text"
        added = sum(index >= VOCABULARY_SIZE for index in ids.values())
        ids[token] = VOCABULARY_SIZE + added if known is None else known
    return ids


def _is_nan(given: Mapping[str, float] | float | None) -> bool:
    return isinstance(given, float) and math.isnan(given)


def _config(n_vocab: int, d: int, ids: Mapping[str, int], heads: Mapping[str, Head]) -> dict[str, object]:
    base = base_config(
        "llama", vocab_size=n_vocab, hidden_size=d, intermediate_size=32, num_hidden_layers=1,
        max_position_embeddings=CONTEXT, eos_token_id=ids[END], dtype="float32",
    )  # fmt: skip
    specs = {name: head.spec(name, ids).to_dict() for name, head in heads.items()}
    return adapter.so8t_config(base, {"so8t_rotation_dim": 8, "so8t_shared_blocks": True, "so8t_heads": specs})


def _write(
    directory: Path, config: dict[str, object], spec: ModelSpec, weights: dict[str, np.ndarray],
    ids: dict[str, int], template: str,
) -> None:  # fmt: skip
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.model").write_bytes(tokenizer_model())
    added = {
        str(index): {"content": token, "special": token in CONTROL}
        for token, index in ids.items()
        if index >= VOCABULARY_SIZE
    }
    fields = {
        "add_bos_token": False, "add_prefix_space": False, "eos_token": END, "chat_template": template,
        "added_tokens_decoder": added, "tokenizer_class": "LlamaTokenizer",
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    tensors = []
    for name, expected in {**base_tensors(config, spec), **so8t_tensors(spec)}.items():
        values = weights.get(name)
        if values is None:
            if not expected.required:
                continue
            values = np.zeros(expected.shape)
        tensors.append(stored(name, values.astype(np.float32)))
    safetensors_writer.write_sharded(directory, tensors)
