"""Files that contradict the format: the loader names the key or tensor that is wrong, on one line.

`make test-asan` runs these under ASan and UBSan, beside the fuzzer of the loader; test_lora.py has hostile adapters.
"""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_files import copy_gguf

from llama_so8t.bindings import Session
from llama_so8t.errors import RuntimeLibraryError, So8tError
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.format import HEAD_KEYS, Keys
from llama_so8t.inspection import inspect

KEYS = [
    ("so8t.format_version", 3, "so8t.format_version' is 3, this program reads version 1 to 2"),
    ("so8t.rotation.dimension", 4, "expected 8"),
    ("so8t.base_architecture", "phi3", "expected qwen3, llama or qwen2"),
    ("so8t.rotation.explicit", ["gate", "nose"], "expected gate, qk, v, heads or ffn"),
    ("so8t.head.safety.actions", ["allow"], "expected the same number of each"),
    ("so8t.head.safety.actions", ["allow", "explode"], "expected allow, escalate or refuse"),
    ("so8t.head.safety.temperature", 0.0, "expected a number above 0"),
    ("so8t.head.safety.debounce", 0, "expected 1 to 65536"),
    ("so8t.head.safety.scope", "nowhere", "expected prompt, answer or both"),
    ("so8t.attention.head_representation", [0, 1], "expected 9 entries of 0, 1 or 2"),
    ("so8t.heads", ["safety", "safety"], "twice"),
    ("so8t.heads", ["a\nb"], "has 'a?b', expected letters"),
    ("so8t.heads", [b"\xff"], "has '?', expected letters"),
    ("so8t.head.safety.labels", ["safe", "safe"], "has 'safe' at 1, expected different texts"),
    ("so8t.head.safety.labels", ["safe", ""], "has '' at 1, expected different texts"),
    ("so8t.head.safety.labels", ["safe", b"\xff\xfe"], "has '??' at 1, expected different texts in UTF-8"),
    ("so8t.head.safety.labels", ["safe", b"\xed\xa0\x80"], "has '???' at 1"),
    ("so8t.head.safety.labels", [str(i) for i in range(4097)], "has 4097 labels, expected at most 4096"),
    ("so8t.head.safety.representation", 3, "so8t.head.safety.representation' is 3, expected 0, 1 or 2"),
    ("so8t.pooling_type", 1, "so8t.pooling_type' is there"),
    ("so8t.rotation.explicit", ["gate", "gate"], "names the site 'gate' twice"),
    ("so8t.rotation.folded", ["qk"], "the site 'qk' is in 'so8t.rotation.explicit' and in 'so8t.rotation.folded'"),
    ("so8t.rotation.explicit", ["x" * 1000], "names the site '" + "x" * 80 + "...', expected"),
    ("so8t.attention.head_count_kv", 2, "are 9 and 2, expected numbers above 0, the first a multiple"),
    ("so8t.heads", ["safety", "other"], "so8t.head.other.labels"),
]
"""Key, its value, and what the loader says of it."""

SET = {
    Keys.FORMAT_VERSION: ({}, ["0", "3", "4294967295"]),
    Keys.ROTATION_DIMENSION: ({}, ["0", "4", "16"]),
    "temperature": ({}, ["0", "-1", "nan", "inf"]),
    "debounce": ({}, ["0", "65537", "4294967295"]),
    "representation": ({}, ["-1", "3", "2147483647"]),
    "prompt_token": ({"prompt_token": 5}, ["-1", "320", "-2147483648"]),
    "sliding_window": ({}, ["1", "4294967295"]),
    "ema_alpha": ({"aggregation": "ema", "ema_alpha": 0.5}, ["0", "-0.5", "1.5", "nan"]),
    "window": ({"aggregation": "window", "window": 4, "debounce": 2}, ["0", "1", "65537"]),
}
"""Every number of ours: what the head has for it to be there, and values that gguf-set-metadata writes unasked."""

STEMS = [
    (("s", "gelu"), ("s", "tanh"), "share the stem 's' and have the activations 'gelu' and 'tanh', expected the same"),
    (("s", "gelu"), ("s", "rmsnorm"), "have the activations 'gelu' and 'rmsnorm', expected the same"),
    (("s", "gelu"), ("s", "relu"), "head 'authority' has the stem 's' and activation 'relu', expected gelu, tanh, "),
    (("s", "gelu"), ("s", "none"), "head 'authority' has the stem 's' and activation 'none', expected gelu, tanh, "),
    (("s", "gelu"), ("t", "relu"), "head 'authority' has the stem 't' and activation 'relu', expected gelu, tanh, "),
    (("s", "relu"), ("s", "relu"), "head 'safety' has the stem 's' and activation 'relu', expected gelu, tanh, "),
    (("a b", "gelu"), ("s", "gelu"), "so8t.head.safety.stem' is 'a b', expected letters"),
]
"""Stem and activation of both heads, and what the loader says of them."""


def typed(kind: str, value):
    """A value of this type of docs/format.md, as gguf-py writes it."""
    from llama_so8t.upstream import gguf

    types = {"u32": "UINT32", "i32": "INT32", "f32": "FLOAT32", "str": "STRING"}
    return gguf.GGUFValue(value, gguf.GGUFValueType[types[kind]])


def halved(values):
    return values.astype(np.float16)


def without_rows(values):
    return values[:0]


def without_the_last(values):
    return values[:-1]


def spoiled(value):
    def spoil(values):
        values.reshape(-1)[3] = value

    return spoil


TENSORS = [
    ("so8t_head.safety.weight", halved, "is f16, expected f32"),
    ("so8t_head.safety.bias", halved, "is f16, expected f32"),
    ("so8t_stem.x.weight", halved, "is f16, expected f32"),
    ("blk.0.so8t_gen.weight", halved, "is f16, expected f32"),
    ("blk.0.so8t_v_rot.weight", halved, "is f16, expected f32"),
    ("so8t_stem.x.weight", without_rows, "has no rows, expected 1 or more"),
    ("blk.0.so8t_gen.weight", without_rows, "has no rows, expected 1 or more"),
    ("blk.1.so8t_gen.weight", without_the_last, "has 98 rows, expected 6 or 99 for the sites in"),
    ("so8t_head.safety.weight", spoiled(np.nan), "has nan at 3, expected finite numbers"),
    ("so8t_head.safety.weight", spoiled(-np.inf), "has -inf at 3, expected finite numbers"),
    ("so8t_stem.x.weight", spoiled(np.nan), "has nan at 3, expected finite numbers"),
    ("blk.1.so8t_v_rot.weight", spoiled(np.nan), "is not in SO(8)"),
]
"""Tensor, how it is changed, and what the loader says of it."""


@pytest.fixture(scope="module")
def file(make_model, to_gguf):
    model = make_model("qwen3", hidden_size=256, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    return to_gguf(model, "explicit")


def on_stems(file: Path, path: Path, safety: tuple[str, str], authority: tuple[str, str]) -> Path:
    """A copy whose two heads have these (stem, activation), the stems as wide as the hidden vector."""
    from llama_so8t import upstream

    width = upstream.gguf.GGUFReader(file).fields["so8t.embedding_length"].contents()
    keys = {}
    for head, (stem, activation) in (("safety", safety), ("authority", authority)):
        at = f"so8t.head.{head}"
        keys |= {f"{at}.stem": stem, f"{at}.activation": activation, f"{at}.form": "mlp"}
    stems = {stem: np.eye(width, dtype=np.float32) for stem, _ in (safety, authority)}
    return copy_gguf(file, path, keys, {f"so8t_stem.{stem}.weight": weight for stem, weight in stems.items()})


def assert_refused(bad: Path, words: str) -> None:
    with pytest.raises(RuntimeLibraryError) as error:
        Session(bad)
    assert words in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value", "words"), KEYS)
def test_loader_names_the_key_that_is_wrong(file, tmp_path, key, value, words):
    assert_refused(copy_gguf(file, tmp_path / "bad.gguf", {key: value}), words)


def is_number(kind: str) -> bool:
    return kind in ("u32", "i32", "f32")


@pytest.mark.parametrize("name", sorted({*SET, *HEAD_KEYS}))
def test_every_number_that_gguf_set_metadata_writes_is_checked(file, tmp_path, monkeypatch, name):
    """A number without a row is a KeyError here. Texts and lists are refused by the program itself."""
    from llama_so8t import upstream

    upstream.gguf  # of the pinned tree  # noqa: B018
    from gguf.scripts import gguf_set_metadata

    def set_to(path: Path, value: str) -> None:
        monkeypatch.setattr(sys, "argv", ["gguf-set-metadata", "--force", str(path), key, value])
        gguf_set_metadata.main()

    key = HEAD_KEYS[name].of("safety") if name in HEAD_KEYS else name
    if name in HEAD_KEYS and not is_number(HEAD_KEYS[name].type):
        keys = {key: "x"} if HEAD_KEYS[name].type == "str" else {}
        with pytest.raises(SystemExit) as ended:
            set_to(copy_gguf(file, tmp_path / "bad.gguf", keys), "1")
        assert ended.value.code == 1
        return
    fields, values = SET[name]
    keys = {HEAD_KEYS[field].of("safety"): typed(HEAD_KEYS[field].type, value) for field, value in fields.items()}
    good = copy_gguf(file, tmp_path / "good.gguf", keys)
    Session(good).close()
    for value in values:
        bad = Path(shutil.copy(good, tmp_path / "bad.gguf"))
        set_to(bad, value)
        assert_refused(bad, f"key '{key}' ")
        with pytest.raises(So8tError, match=re.escape(key.rpartition(".")[2])):
            inspect(bad)


@pytest.mark.parametrize("counts", [[9, 18], [9, 3]])
def test_attention_heads_are_the_same_number_in_every_layer(file, tmp_path, counts):
    from llama_so8t.upstream import gguf

    value = gguf.GGUFValue(counts, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    bad = copy_gguf(file, tmp_path / "bad.gguf", {"so8t.attention.head_count": value})
    assert_refused(bad, f"layer 1 has {counts[1]} heads and 3 key-value heads")


@pytest.mark.parametrize(("name", "change", "words"), TENSORS)
def test_loader_names_the_tensor_that_is_wrong(file, tmp_path, name, change, words):
    on = on_stems(file, tmp_path / "stems.gguf", ("x", "gelu"), ("x", "gelu"))
    assert_refused(copy_gguf(on, tmp_path / "bad.gguf", tensors={name: change}), f"tensor '{name}")
    assert_refused(tmp_path / "bad.gguf", words)


def test_a_stem_that_is_missing_is_named(file, tmp_path):
    keys = {"so8t.head.safety.stem": "x", "so8t.head.safety.activation": "gelu"}
    assert_refused(copy_gguf(file, tmp_path / "bad.gguf", keys), "tensor 'so8t_stem.x.weight' is missing")


def test_generators_of_version_1_are_not_those_of_version_2(file, tmp_path):
    rows = {"gate_safe": 32, "gate_cmd": 32, "qk": 1, "v": 1, "heads": 1, "ffn": 32}

    def alone(layer):
        values = read_gguf(file).tensors[f"blk.{layer}.so8t_gen.weight"].read()
        parts = np.split(values, np.cumsum(list(rows.values()))[:-1])
        return {f"blk.{layer}.so8t_{name}_gen.weight": part for name, part in zip(rows, parts, strict=True)}

    tensors = alone(0) | alone(1) | {f"blk.{layer}.so8t_gen.weight": None for layer in (0, 1)}
    assert_refused(copy_gguf(file, tmp_path / "bad.gguf", tensors=tensors), "tensor 'blk.0.so8t_gen.weight' is missing")
    later_fields = {key.field for key in HEAD_KEYS.values() if key.since > 1}
    later = {key: None for key in read_gguf(file).metadata if key.split(".")[-1] in later_fields}
    old = copy_gguf(file, tmp_path / "old.gguf", later | {"so8t.format_version": 1}, tensors)
    with Session(file) as new, Session(old) as session:
        for each in (new, session):
            each.decode([1, 2, 3])
        np.testing.assert_array_equal(session.logits(), new.logits())
    assert_refused(
        copy_gguf(file, tmp_path / "bad.gguf", later | {"so8t.format_version": 1}),
        "wrong number of tensors; expected 46, got 44",
    )


@pytest.mark.parametrize(("safety", "authority", "words"), STEMS)
def test_heads_of_one_stem_agree_on_a_known_activation(file, tmp_path, safety, authority, words):
    assert_refused(on_stems(file, tmp_path / "bad.gguf", safety, authority), words)


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_heads_that_agree_share_a_stem(file, tmp_path, activation):
    with Session(on_stems(file, tmp_path / "good.gguf", ("s", activation), ("s", activation))) as session:
        assert [head.name for head in session.heads] == ["safety", "authority"]


def test_the_number_of_files():
    """None has left the tables unseen: `make test-asan` counts them."""
    assert len(KEYS) + len(TENSORS) + len(STEMS) == 44
