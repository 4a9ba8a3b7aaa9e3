"""A probe beside a model in llama-server: what eight slots say at once is what the probe says of each text alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from probe_models import LABELS, ROWS, ProbeShape, features, probe_logits, random_tensors, write_probe
from tiny_models import make_base

from llama_so8t.checkpoint.singprobe import open_probe
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.heads_file import Base, attach, write_heads_file

from .conftest import scale_weights
from .guard_server import COMPLETION
from .tapped_models import streams

N_SLOTS = 8
N_CASES = 24
QUIET = {"attn": 1.4, "mlp": 1.8}
LAYERS = (0, 2, 3)
SHAPES = {
    "attn": ProbeShape("attn", 64, LAYERS, n_head=4, head_dim=16),
    "attn-9": ProbeShape("attn", 64, LAYERS, n_head=4, head_dim=16, window=9),
    "mlp": ProbeShape("mlp", 64, LAYERS, inner=48),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, pinned_tree):
    """A model of transformers, and its file without heads."""
    from llama_so8t import upstream

    upstream.gguf  # before transformers, which would import another one  # noqa: B018
    import transformers

    directory = make_base(tmp_path_factory.mktemp("base") / "base", "qwen3", num_hidden_layers=4)
    scale_weights(directory)
    file = directory.parent / "base.gguf"
    convert(ConvertOptions(model=directory, outfile=file, outtype="f32", arch="stock", progress=False))
    return transformers.Qwen3ForCausalLM.from_pretrained(directory).float().eval(), file


@pytest.fixture(scope="module", params=SHAPES)
def cases(request, base, tmp_path_factory, serve_here):
    """(tokens of the prompt, tokens of the answer, values of the probe at every token, verdict of the server)."""
    import torch

    net, file = base
    shape, directory = SHAPES[request.param], tmp_path_factory.mktemp(request.param)
    tensors = random_tensors(shape)
    rows = "classifier" if shape.form == "attn" else "fc2"
    tensors[f"{rows}.bias"] -= torch.tensor([1.0] * 8 + [QUIET[shape.form], 1.0])  # so that some texts are safe
    probe = open_probe(write_probe(directory / "probe", shape, tensors))
    write_heads_file(directory / "probe.heads.gguf", Base.of(file), probe.heads, probe.tensors)
    attach(file, [directory / "probe.heads.gguf"], directory / "probed.gguf")
    exact = ("-ctk", "f32", "-ctv", "f32", "-fa", "off", "--kv-unified")
    drafts = ("-md", file, "--spec-type", "draft-simple", "--spec-draft-n-max", 3)
    flags = ("--so8t-policy", "monitor", "-np", N_SLOTS, *drafts, *exact)
    server = serve_here(directory / "probed.gguf", *flags)
    rng = np.random.default_rng(3)
    start = rng.integers(10, 300, 12).tolist()  # of every prompt, so that slots find it in their caches
    prompts = [start + rng.integers(10, 300, rng.integers(3, 30)).tolist() for _ in range(N_CASES)]

    def ask(seed):
        options = {"seed": seed, "temperature": 0.7, "ignore_eos": True, "return_tokens": True, "n_predict": 14}
        return COMPLETION.ask(server, prompts[seed], so8t={"trace": True}, **options)

    with ThreadPoolExecutor(N_SLOTS) as pool:
        replies = list(pool.map(ask, range(N_CASES)))
    timings = [reply.raw["timings"] for reply in replies]
    assert 0 < sum(t["draft_n_accepted"] for t in timings) < sum(t["draft_n"] for t in timings)
    assert max(t["cache_n"] for t in timings) >= len(start)
    found = []
    for prompt, reply in zip(prompts, replies, strict=True):
        answer = reply.raw["tokens"]
        values = probe_logits(shape, tensors, features(streams(net, [*prompt, *answer]), shape.layers)).numpy()
        found.append((prompt, answer, values, reply.so8t))
    return found


def probability(logits):
    return 1 / (1 + np.exp(-logits))


def test_every_token_has_the_probabilities_of_the_probe(cases):
    for prompt, answer, values, so8t in cases:
        heads = so8t["prompt"]["heads"]
        assert list(heads) == ["query"]
        expected = probability(values[len(prompt) - 1, ROWS["query"]])
        np.testing.assert_allclose(list(heads["query"]["probabilities"].values()), expected, atol=1e-4)
        trace = [token["heads"] for token in so8t["trace"] if token["part"] == "answer"]
        # no token is sampled behind the last one, so it has no verdict
        assert len(trace) == len(answer) - 1
        is_refused = False
        for position, heads in enumerate(trace):
            row = probability(values[len(prompt) + position])
            np.testing.assert_allclose(heads["response"]["unsafe"], row[8], atol=1e-4)
            is_refused = row[8] >= 0.5
            if not is_refused:  # a refusal ends the round
                np.testing.assert_allclose(heads["hallucination"]["hallucination"], row[9], atol=1e-4)


def test_a_label_acts_where_its_logit_is_above_0(cases):
    decisions = set()
    for prompt, answer, values, so8t in cases:
        risks = [LABELS[row] for row in range(7) if values[len(prompt) - 1, row] > 0]
        assert so8t["prompt"]["action"] == ("refuse" if risks else "allow")
        unsafe = np.flatnonzero(values[len(prompt) : len(prompt) + len(answer) - 1, 8] > 0)
        assert so8t["answer"]["action"] == ("refuse" if len(unsafe) else "allow")
        triggered = so8t["answer"]["heads"]["response"]["triggered"]
        assert triggered == ({"position": int(unsafe[0]), "label": "unsafe"} if len(unsafe) else None)
        assert so8t["answer"]["heads"]["hallucination"]["triggered"] is None
        decisions.add((bool(risks), bool(len(unsafe))))
    assert len(decisions) >= 3
