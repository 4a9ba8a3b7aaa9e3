"""LoRA adapters of a server: they are part of the model that the audit log names, and a change of them has its line."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import write_gguf

from llama_so8t.audit import Log, verify
from llama_so8t.files.gguf_file import read_gguf

from .guard_rules import Policy
from .guard_server import SMALL, Server

POLICY = Policy(mode="enforce")


@pytest.fixture(scope="module")
def adapter(guard_file, tmp_path_factory) -> Path:
    """By which the model takes "bomb" for a token of no script, so that the safety head sees nothing in it."""
    file = read_gguf(guard_file)
    tokens = file.get("tokenizer.ggml.tokens")
    embedding = file.tensors["token_embd.weight"].read()
    a = np.zeros((len(tokens), 1), np.float32)
    a[tokens.index("bomb")] = 1.0
    b = np.zeros((embedding.shape[1], 1), np.float32)
    b[0] = 50.0
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 1.0}
    tensors = {"token_embd.weight.lora_a": a, "token_embd.weight.lora_b": b}
    return write_gguf(tmp_path_factory.mktemp("lora") / "blind.gguf", keys=keys, tensors=tensors)


@pytest.fixture
def start(runtime, guard_file, adapter, tmp_path):
    """Starts llama-server with the adapter and an audit log."""
    running = []

    def run(*flags: object) -> Server:
        files = ("-m", guard_file, "--lora", adapter, "--so8t-audit", tmp_path / "audit.jsonl")
        running.append(Server(runtime / "llama-server", *files, *SMALL, *POLICY.flags, *flags))
        return running[-1]

    yield run
    for server in running:
        server.stop()


def lines(log: Path) -> list[dict[str, Any]]:
    return [record for _, record in Log(log).records(lambda line: pytest.fail(f"{line.place}: {line.problem}"))]


def decision(server: Server, **options: object) -> str:
    body = {"messages": [{"role": "user", "content": "bomb"}], "max_tokens": 4, **options}
    return server.post("/v1/chat/completions", body)["so8t"]["decision"]


def test_adapters_are_part_of_the_model_that_is_logged(start: Callable[..., Server], adapter, tmp_path):
    server = start("--so8t-request-lora", "allow")
    told = {"path": str(adapter), "sha256": hashlib.sha256(adapter.read_bytes()).hexdigest(), "scale": 1.0}
    assert server.get("/so8t")["model"]["adapters"] == [told]
    assert decision(server) == "allow"  # what an adapter can do
    assert server.request("POST", "/lora-adapters", [{"id": 0, "scale": 0.0}]).status == 200
    assert server.get("/so8t")["model"]["adapters"] == [told | {"scale": 0.0}]
    assert decision(server) == "refuse"
    assert server.request("POST", "/lora-adapters", [{"id": 0, "scale": 0.0}]).status == 200  # no change
    assert server.request("POST", "/lora-adapters", [{"id": 0, "scale": 0.5}]).status == 200
    assert decision(server) == "allow"
    server.stop()
    found = lines(tmp_path / "audit.jsonl")
    assert [line["event"] for line in found] == [
        "open", "request", "adapters", "request", "adapters", "request", "close",
    ]  # fmt: skip
    assert found[0]["model"]["adapters"] == [told]
    assert found[2]["adapters"] == [told | {"scale": 0.0}] and found[4]["adapters"] == [told | {"scale": 0.5}]
    report = verify(tmp_path / "audit.jsonl")
    assert report.ok and sum("LoRA adapter" in note for note in report.notes) == 2


def test_a_request_that_may_choose_adapters_has_them_in_its_line(start: Callable[..., Server], tmp_path):
    server = start("--so8t-request-lora", "allow")
    assert decision(server, lora=[{"id": 0, "scale": 0.0}]) == "refuse"
    assert decision(server) == "allow"
    assert decision(server, lora=[{"id": 0, "scale": 0.0}]) == "refuse"
    server.stop()
    requests = [line for line in lines(tmp_path / "audit.jsonl") if line["event"] == "request"]
    assert [line.get("lora") for line in requests] == [[{"id": 0, "scale": 0.0}], None, [{"id": 0, "scale": 0.0}]]


def test_no_client_changes_the_adapters_by_which_all_are_judged(start: Callable[..., Server], tmp_path):
    server = start()
    reply = server.request("POST", "/lora-adapters", [{"id": 0, "scale": 0.0}])
    assert reply.status == 501 and b"--so8t-request-lora allow" in reply.body
    assert server.get("/so8t")["model"]["adapters"][0]["scale"] == 1.0
    assert server.get("/lora-adapters")[0]["scale"] == 1.0 and decision(server) == "allow"
    server.stop()
    assert [line["event"] for line in lines(tmp_path / "audit.jsonl")] == ["open", "request", "close"]


def test_without_adapters_the_list_is_empty(serve, guard_file):
    assert serve(guard_file, *POLICY.flags).get("/so8t")["model"]["adapters"] == []
