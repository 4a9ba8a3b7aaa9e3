"""Models on two RPC servers: the same values as in one process, and a clear end where a server is lost."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from properties import assert_same_function
from scripted_model import Head, scripted_gguf

from llama_so8t.bindings import Session
from llama_so8t.errors import RuntimeLibraryError
from llama_so8t.server_process import free_port

from . import backend_values
from .conftest import tokens_for
from .guard_server import SMALL, Server
from .rpc_server import Line, RpcServer

MODELS = {
    "qwen3": {
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
        "intermediate_size": 512,
    },
    "llama": {
        "num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
        "intermediate_size": 512,
    },
}  # fmt: skip
"""Wide enough that every kind of matrix is shared out; narrower ones stay on one device."""

FLASH_MARGIN = 3e-3
"""Split mode tensor needs flash attention, which on the CPU rounds to float16: in one process the same model folded and
explicit differ by 1e-3 of the largest logit with it, by 5e-6 without. A lost site changes more than 2e-2."""

SCRIPTS = {
    "fine": ["all ", "is ", "well ", "here"],
    "go": ["one ", "two ", "bad ", "three ", "four"],
    "ask": ["may ", "risk ", "more ", "end"],
    "bomb": ["sure ", "thing"],
    "tick": ["tock ", "tick"],
}
HEADS = {
    "safety": Head(
        ["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9],
        tokens={"bad ": {"unsafe": 0.97}, "bomb": {"unsafe": 0.99}},
    ),
    "authority": Head(["handle", "escalate"], ["allow", "escalate"], [0.5, 0.6], tokens={"risk ": {"escalate": 0.8}}),
}  # fmt: skip
"""A model that answers by rote, and what its heads say of which token."""

QUIET = {**os.environ, "GGML_NO_BACKTRACE": "1"}


@pytest.fixture(scope="module")
def scripted(tmp_path_factory, pinned_tree):
    return scripted_gguf(tmp_path_factory.mktemp("scripted") / "model", SCRIPTS, HEADS)


@pytest.fixture
def servers(runtime):
    with RpcServer(runtime / "ggml-rpc-server") as first, RpcServer(runtime / "ggml-rpc-server") as second:
        yield first, second


@pytest.fixture(scope="module", params=MODELS)
def model(request, make_model):
    return make_model(request.param, **MODELS[request.param])


@pytest.fixture(scope="module")
def qwen3(make_model):
    return make_model("qwen3", **MODELS["qwen3"])


def endpoints(servers):
    return [server.endpoint for server in servers]


@pytest.fixture
def values(tmp_path):
    """Values of a file of a model: ``values(file, **options of Session)``."""
    return lambda file, **options: backend_values.values(
        file, tokens_for(file.parent, 35), tmp_path / "values.npz", **options
    )


def check(found, expected, margin=0.0):
    """Without margin every bit: the servers run the same kernels, and the hints of rotations travel with the nodes."""
    assert list(expected) == ["task", "safety", "authority"]
    assert_same_function(found, expected, margin, np.abs(expected["task"]).max())


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_two_servers_give_the_values_of_one_process(model, to_gguf, servers, values, rotations):
    file = to_gguf(model, rotations)
    found = values(file, rpc=endpoints(servers), n_gpu_layers=99)
    check(found, values(file))
    work = [server.work() for server in servers]
    assert all(w.n_graphs >= 3 and w.n_bytes > 0.2 * sum(x.n_bytes for x in work) for w in work)


@pytest.mark.parametrize("rotations", ["fold", "explicit"])
def test_tensor_split_gives_the_values_of_one_process(model, to_gguf, servers, values, rotations):
    file = to_gguf(model, rotations)
    found = values(file, rpc=endpoints(servers), n_gpu_layers=99, split_mode="tensor", flash_attn=True)
    check(found, values(file, flash_attn=True), FLASH_MARGIN)
    first, second = (server.work() for server in servers)
    # each layer ends in a sum over both servers, twice
    assert first.n_graphs >= 3 * 8 and second.n_graphs >= 3 * 8
    assert 0.5 < first.n_bytes / second.n_bytes < 2


@pytest.mark.parametrize(
    "family, fields",
    [
        ("llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72}),
        ("llama", {"num_attention_heads": 17, "num_key_value_heads": 1, "hidden_size": 136, "shared_blocks": True}),
        ("qwen2", {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 512}),
        ("qwen3", {"num_attention_heads": 13, "num_key_value_heads": 13, "tie_word_embeddings": True}),
    ],
    ids=["9 of 3", "17 of 1", "bias", "13 of 13, tied"],
)
def test_tensor_split_of_head_counts_that_do_not_divide(make_model, to_gguf, servers, values, family, fields):
    model = make_model(family, **{"head_dim": 64, "intermediate_size": 512} | fields)
    for rotations in ("fold", "explicit"):
        file = to_gguf(model, rotations)
        found = values(file, rpc=endpoints(servers), n_gpu_layers=99, split_mode="tensor", flash_attn=True)
        check(found, values(file, flash_attn=True), FLASH_MARGIN)


def test_layers_are_shared_as_asked(qwen3, to_gguf, servers, values):
    file = to_gguf(qwen3)
    found = values(file, rpc=endpoints(servers), n_gpu_layers=99, tensor_split=[4, 1])
    check(found, values(file))
    first, second = (server.work() for server in servers)
    assert first.n_bytes > 2 * second.n_bytes > 0


def test_layers_that_are_not_offloaded_stay_here(qwen3, to_gguf, servers, values):
    file = to_gguf(qwen3, "explicit")
    found = values(file, rpc=endpoints(servers), n_gpu_layers=2)
    check(found, values(file))
    n_bytes = sum(server.work().n_bytes for server in servers)
    values(file, rpc=endpoints(servers), n_gpu_layers=99)
    assert 0 < n_bytes < 0.4 * sum(server.work().n_bytes for server in servers)


def test_split_mode_row_is_refused(qwen3, to_gguf, servers):
    with pytest.raises(RuntimeLibraryError, match="does not support split buffers"):
        Session(to_gguf(qwen3), rpc=endpoints(servers), n_gpu_layers=99, split_mode="row")


def test_state_goes_to_the_servers_and_back(qwen3, to_gguf, servers):
    file, tokens = to_gguf(qwen3, "explicit"), tokens_for(qwen3, 18)
    with Session(file, rpc=endpoints(servers), n_gpu_layers=99) as session:
        session.decode(tokens[:17])
        state = session.save_state()
        session.decode(tokens[17:], position=17)
        expected = session.logits()
    with Session(file, rpc=endpoints(servers), n_gpu_layers=99) as session:
        session.load_state(state)
        session.decode(tokens[17:], position=17)
        assert np.array_equal(session.logits(), expected)


# ---- the tools ----


def ask(server: Server, prompt: str) -> dict:
    body = {"prompt": prompt, "n_predict": 8, "temperature": 0, "cache_prompt": False}
    reply = server.post("/completion", body)
    return {key: reply[key] for key in ("content", "stop_type", "so8t")}


@pytest.mark.parametrize("split_mode", ["layer", "tensor"])
def test_server_gives_the_same_verdicts(runtime, scripted, serve, servers, split_mode):
    """The scripted model judges by token: words, the end of an answer and every probability must come out alike."""
    enforce = ("--so8t-policy", "enforce")
    here = serve(scripted, *enforce)
    flags = ["--rpc", ",".join(endpoints(servers)), "-ngl", "99", "-sm", split_mode, "-ts", "1,1", "-v"]
    with Server(runtime / "llama-server", "-m", scripted, *SMALL, *enforce, *flags) as there:
        for prompt in ("fine", "go", "ask", "bomb"):
            found, expected = ask(there, prompt), ask(here, prompt)
            assert rounded(found) == rounded(expected)
        assert expected["so8t"]["prompt"]["action"] == "refuse"
        output = there.output()
    for server in servers:
        assert server.endpoint in output
        assert server.work().n_graphs > 0 and server.work().n_bytes > 0


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


def complete(runtime: Path, file: Path, *flags: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [runtime / "llama-completion", "-m", file, "-p", "The head decides", "-n", "12", "--temp", "0", "--seed", "1",
         "-no-cnv", "--ignore-eos", "--no-warmup", "-t", "1", "-c", "256", "-fa", "off", *map(str, flags)],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=300, env=QUIET,
    )  # fmt: skip


def test_completion_gives_the_same_text_and_verdicts(runtime, model, to_gguf, servers, tmp_path):
    file = to_gguf(model, "explicit")
    here = complete(runtime, file, "--so8t-json", tmp_path / "here")
    rpc = ("--rpc", ",".join(endpoints(servers)), "-ngl", 99)
    there = complete(runtime, file, "--so8t-json", tmp_path / "there", *rpc)
    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    assert there.stdout == here.stdout
    found, expected = (json.loads((tmp_path / name).read_text()) for name in ("there", "here"))
    assert rounded(found) == rounded(expected)
    assert all(server.work().n_graphs >= 12 for server in servers)


# ---- lost ----


def assert_lost(returncode: int, stderr: str, endpoint: str) -> None:
    """The program ended by itself and says which server it lost."""
    assert returncode == -signal.SIGABRT, (returncode, stderr[-2000:])
    assert f"RPC server {endpoint} is lost" in stderr, stderr[-2000:]


def test_a_server_lost_while_loading_ends_the_program(runtime, qwen3, to_gguf, servers):
    file = to_gguf(qwen3, "explicit")
    with Line(servers[1].endpoint) as whole:
        result = complete(runtime, file, "--rpc", f"{servers[0].endpoint},{whole.endpoint}", "-ngl", 99)
    assert result.returncode == 0, result.stderr
    for n_bytes in (whole.n_sent // 100, whole.n_sent // 3):
        with Line(servers[1].endpoint, n_bytes) as line:
            result = complete(runtime, file, "--rpc", f"{servers[0].endpoint},{line.endpoint}", "-ngl", 99)
        assert_lost(result.returncode, result.stderr, line.endpoint)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("split_mode", ["layer", "tensor"])
def test_a_server_killed_while_generating_ends_the_program(runtime, qwen3, to_gguf, servers, which, split_mode):
    process = subprocess.Popen(
        [runtime / "llama-completion", "-m", to_gguf(qwen3, "explicit"), "-p", "The", "-n", "-1", "-no-cnv",
         "-c", "2048", "--ignore-eos", "--no-warmup", "-ngl", "99", "-sm", split_mode,
         "--rpc", ",".join(endpoints(servers))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=QUIET,
    )  # fmt: skip
    try:
        assert len(process.stdout.read(16)) == 16  # it has begun
        servers[which].kill()
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert_lost(process.returncode, stderr.decode(errors="replace"), servers[which].endpoint)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_of_llama_server_breaks_off(runtime, scripted, servers, monkeypatch, stream):
    """A lost server gives no answer that looks whole: no verdict, no [DONE]; llama-server ends, to be started anew."""
    monkeypatch.setenv("GGML_NO_BACKTRACE", "1")
    with Line(servers[1].endpoint) as line:
        flags = ["--rpc", f"{servers[0].endpoint},{line.endpoint}", "-ngl", "99", "-ts", "1,1"]
        with Server(runtime / "llama-server", "-m", scripted, *SMALL, *flags) as server:
            body = {"prompt": "tick", "n_predict": -1, "stream": stream, "temperature": 0}
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                if not stream:
                    line.cut_after(2000)
                with server.open("POST", "/completion", body) as response:
                    if stream:
                        assert response.status == 200
                        assert response.readline().startswith(b"data: ")
                        line.cut()
                    rest = response.read()
                    assert b"so8t" not in rest and b"[DONE]" not in rest
            server.process.wait(timeout=60)
            assert_lost(server.process.returncode, server.output(), line.endpoint)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")
def test_a_silent_peer_is_probed(runtime, scripted, servers):
    """A machine that is switched off sends no word: both ends keep a keep-alive timer, so neither waits for ever."""
    ports = {int(server.endpoint.split(":")[1]) for server in servers}

    def timers() -> list[str]:
        """Of each end of the connections to the servers."""
        found = []
        for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            local, remote, state, _, timer = row.split()[1:6]
            if state == "01" and ports & {int(address.split(":")[1], 16) for address in (local, remote)}:
                found.append(timer.split(":")[0])
        return found

    rpc = ("--rpc", ",".join(endpoints(servers)), "-ngl", 99)
    with Server(runtime / "llama-server", "-m", scripted, *SMALL, *rpc) as server:
        # 02 is keep-alive; as long as sent bytes are not acknowledged there is 01, of the retransmission
        server.wait_for(lambda: sorted(timers()) == ["02"] * 4)


# ---- wrong endpoints ----


@pytest.mark.parametrize("endpoint", ["closed", "nonsense", "127.0.0.1:port", "no.such.host.invalid:50052"])
def test_an_endpoint_without_server_is_named(runtime, scripted, endpoint):
    endpoint = f"127.0.0.1:{free_port()}" if endpoint == "closed" else endpoint
    result = complete(runtime, scripted, "--rpc", endpoint, "-ngl", 99)
    assert result.returncode == 1
    assert f"no RPC server can be used at {endpoint}" in result.stderr
    with pytest.raises(RuntimeLibraryError, match="no RPC server can be used at"):
        Session(scripted, rpc=[endpoint])


def test_a_server_of_another_kind_is_named(runtime, scripted, serve):
    other = serve(scripted)
    result = complete(runtime, scripted, "--rpc", f"127.0.0.1:{other.port}", "-ngl", 99)
    assert result.returncode == 1
    assert f"no RPC server can be used at 127.0.0.1:{other.port}" in result.stderr


def test_a_busy_server_is_named(runtime, scripted, servers):
    """An RPC server has one client at a time; another one would wait without a word."""
    host, port = servers[0].endpoint.split(":")
    with socket.create_connection((host, int(port))):
        result = complete(runtime, scripted, "--rpc", servers[0].endpoint, "-ngl", 99)
    assert result.returncode == 1
    assert "it serves another client" in result.stderr
    assert complete(runtime, scripted, "--rpc", servers[0].endpoint, "-ngl", 99).returncode == 0
