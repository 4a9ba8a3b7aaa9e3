"""Hidden states and token ids are those of the model, however they are batched and cached."""

from pathlib import Path

import numpy as np
import pytest
import required
from required import package

from llama_so8t.checkpoint import Vocabulary
from llama_so8t.checkpoint.initialize import InitializeOptions, initialize
from llama_so8t.errors import CheckpointError
from llama_so8t.heads.backbone import Backbone, common_prefix
from llama_so8t.heads.datasets import Example
from llama_so8t.heads.features import MAX_ANSWER_TOKENS, Features, cache_folder
from llama_so8t.heads.tokenization import ChatTokenizer
from tests.tiny_models import write_base

torch = package("torch")
package("transformers")

SEQUENCES = [[1, 5, 9, 12], [1, 5, 9, 40, 41, 42, 43], [1, 5, 30], [1, 5, 9, 12, 200, 201]]


def make(tmp_path: Path, compensate: bool, as_adapter: bool, family: str = "llama") -> Path:
    base = tmp_path / f"base-{family}"
    if not base.exists():
        write_base(base, family)
    out = tmp_path / f"{family}-{compensate}-{as_adapter}"
    initialize(InitializeOptions(str(base), out, "random", 8, 0.3, compensate, as_adapter))
    return out


def states(path: Path) -> list[np.ndarray]:
    found = dict(Backbone(path).hidden_states(SEQUENCES))
    return [found[index] for index in range(len(SEQUENCES))]


def test_batches_and_the_common_prefix_do_not_change_hidden_states(tmp_path, pinned_tree, tolerance):
    backbone = Backbone(make(tmp_path, compensate=True, as_adapter=True))
    prefix = common_prefix(SEQUENCES)
    assert prefix == 2
    model = backbone._load()
    for index, found in backbone.hidden_states(SEQUENCES):
        with torch.inference_mode():
            alone = model(input_ids=torch.tensor([SEQUENCES[index]])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(found, alone[prefix:], atol=tolerance.float32)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_compensated_model_has_the_hidden_states_of_its_base(tmp_path, pinned_tree, family):
    by_base = states(make(tmp_path, compensate=True, as_adapter=True, family=family))
    by_rotations = states(make(tmp_path, compensate=True, as_adapter=False, family=family))
    uncompensated = states(make(tmp_path, compensate=False, as_adapter=True, family=family))
    for a, b, c in zip(by_base, by_rotations, uncompensated, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # two float32 models with weights of size 0.3
        assert np.abs(a - c).max() > 0.1


def test_the_digest_follows_what_the_hidden_states_depend_on(tmp_path, pinned_tree):
    digests = [
        Backbone(make(tmp_path, compensate, as_adapter)).digest
        for compensate, as_adapter in ((True, True), (False, True), (True, False), (False, False))
    ]
    assert len(set(digests)) == 4
    other = tmp_path / "other-seed"
    initialize(InitializeOptions(str(tmp_path / "base-llama"), other, "random", 9, 0.3, True, True))
    assert Backbone(other).digest == digests[0]  # compensated: the base alone decides
    initialize(InitializeOptions(str(tmp_path / "base-llama"), tmp_path / "u", "random", 9, 0.3, False, True))
    assert Backbone(tmp_path / "u").digest != digests[1]


def test_a_base_model_is_refused(tmp_path, pinned_tree):
    with pytest.raises(CheckpointError, match="is a base model"):
        Backbone(write_base(tmp_path / "base", "llama"))


def test_the_common_prefix_leaves_a_token_of_every_sequence():
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix([[4], [1, 2]]) == 0
    assert common_prefix([[1, 2, 3]]) == 2


class CountingBackbone:
    """One state per token: its number in the sequence; counts how often it is asked."""

    digest = "d"
    calls = 0

    class tokenizer:
        @staticmethod
        def prompt(text):
            return list(range(3))

        @staticmethod
        def answer(text):
            return list(range(len(text)))

    def hidden_states(self, sequences):
        self.calls += 1
        for index, ids in enumerate(sequences):
            yield index, np.arange(len(ids), dtype=np.float32)[1:, None].repeat(8, axis=1)


def test_features_are_read_at_the_last_prompt_token_and_the_answer_tokens(tmp_path):
    features = Features(CountingBackbone(), tmp_path, lambda line: None)
    rows = [Example("set", 0, "p"), Example("set", 1, "p", "abcde"), Example("set", 2, "p", "x" * 1000)]
    features.compute(rows)
    assert [features.prompt(row)[0] for row in rows] == [2, 2, 2]
    assert features.answer(rows[1])[:, 0].tolist() == [3, 4, 5, 6, 7]
    assert len(features.answer(rows[2])) == MAX_ANSWER_TOKENS


def test_features_are_computed_once_and_the_cache_has_no_text(tmp_path):
    rows = [Example("set", i, f"question {i}", "reply") for i in range(3)]
    for _ in range(2):
        backbone = CountingBackbone()
        features = Features(backbone, tmp_path, lambda line: None)
        features.compute(rows)
        features.compute(rows[:2])
    assert backbone.calls == 0
    assert features.answer(rows[2]).shape == (5, 8)
    assert all(b"question" not in file.read_bytes() for file in tmp_path.iterdir())
    changed = CountingBackbone()
    Features(changed, tmp_path, lambda line: None).compute([Example("set", 0, "another question", "reply"), *rows[1:]])
    assert changed.calls == 1


# --- tokens ----------------------------------------------------------------------------------

# made by llama-server of llama.cpp 0c1e57098 (/apply-template, then /tokenize with parse_special)
PROMPT = "How tall is K2?"
PROMPT_IDS = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
    1, 4093, 198, 2020, 6780, 314, 659, 34, 47, 2, 198, 1, 520, 9531, 198,
]  # fmt: skip
ANSWERS = {
    "1,250.50 dollars in 2024": [33, 28, 34, 37, 32, 30, 37, 32, 8358, 281, 216, 34, 32, 34, 36],
    "  two  spaces\n\n\nlines\t": [216, 827, 216, 5600, 1116, 198, 5110, 197],
    "don't I'LL we've": [12420, 982, 339, 23, 16421, 392, 3543],
    "x\u00b2+\u00bd na\u00efve": [104, 19133, 27, 16738, 15486, 46494],
    "<|im_end|> inside": [2, 2972],
    "a <repo_name>b <jupyter_code>": [81, 216, 3, 82, 216, 13],
}


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return required.smollm2()


def test_token_ids_are_those_of_llama_cpp(smollm2, pinned_tree):
    tokenizer = ChatTokenizer(Vocabulary(gguf=smollm2))
    assert tokenizer.prompt(PROMPT) == PROMPT_IDS
    assert {text: tokenizer.answer(text) for text in ANSWERS} == ANSWERS


def test_an_unknown_pretokenizer_is_an_error(smollm2, pinned_tree, monkeypatch):
    from llama_so8t.heads import tokenization

    monkeypatch.delitem(tokenization.PRETOKENIZERS, "smollm")
    with pytest.raises(CheckpointError, match="pre-tokenizer 'smollm'"):
        ChatTokenizer(Vocabulary(gguf=smollm2))


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SO8T_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "llama_so8t" / "features"
    monkeypatch.setenv("SO8T_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "features"
