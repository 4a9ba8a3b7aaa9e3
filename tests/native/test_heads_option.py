"""`--so8t-heads`: a model that nobody changed, with heads of other files, is what the copy of `so8t attach` is."""

import hashlib
import json
import subprocess
from http.client import HTTPException
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from scripted_model import scripted_checkpoint

from llama_so8t.audit import Log, verify
from llama_so8t.conversion.convert import convert, heads_file
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.files.gguf_file import read_gguf
from llama_so8t.files.tensor_hash import model_sha256
from llama_so8t.format import Keys
from llama_so8t.heads_file import attach

from .guard_rules import REFUSAL, Policy
from .guard_server import CHAT, HEADS, SCRIPTS, SMALL, Server, wait_for_sleep

POLICY = Policy(mode="enforce")
PROMPTS = ("fine", "go", "ask", "muse", "bomb", "both")


@pytest.fixture(scope="module")
def stock(tmp_path_factory, pinned_tree) -> Path:
    """The scripted model as a llama file, and its heads beside it."""
    root = tmp_path_factory.mktemp("stock")
    model = scripted_checkpoint(root / "model", SCRIPTS, HEADS)
    return convert(
        ConvertOptions(model=model, outfile=root / "stock.gguf", outtype="f32", arch="stock", progress=False)
    )


@pytest.fixture(scope="module")
def heads(stock) -> Path:
    return heads_file(stock)


@pytest.fixture(scope="module")
def copy(stock, heads) -> Path:
    """What `so8t attach` makes."""
    out = stock.with_name("copy.gguf")
    attach(stock, [heads], out)
    return out


@pytest.fixture(scope="module")
def parts(heads) -> tuple[Path, ...]:
    """Each head in a file of its own."""
    return tuple(only(heads, name, heads.with_name(f"{name}.heads.gguf")) for name in HEADS)


def only(heads: Path, name: str, out: Path) -> Path:
    """A heads file with one of the heads."""
    from llama_so8t.upstream import gguf

    others = [other for other in HEADS if other != name]
    keys = {key: None for key in read_gguf(heads).metadata if key.startswith(tuple(f"so8t.head.{o}." for o in others))}
    keys[Keys.HEADS] = gguf.GGUFValue([name], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
    return gguf_files.copy_gguf(heads, out, keys, {f"so8t_head.{other}.weight": None for other in others})


def complete(runtime: Path, tool: str, file: Path, folder: Path, *flags: object, **options: object) -> list[dict]:
    """The verdicts of one run with all prompts, as llama-completion and llama-cli write them."""
    out = folder / "verdicts.jsonl"
    turns = "".join(f"{prompt}\n" for prompt in PROMPTS) + ("/exit\n" if tool == "llama-cli" else "")
    chat = ["-cnv"] if tool == "llama-completion" else []
    result = subprocess.run(
        [runtime / tool, "-m", file, "-t", "1", "-c", "1024", "--temp", "0", "--no-warmup", *chat, "--jinja",
         *POLICY.flags, "--so8t-json", out, *map(str, flags)],
        capture_output=True, text=True, errors="replace", input=turns, timeout=120, **options,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


def ask(server: Server) -> list[dict]:
    return [CHAT.ask(server, prompt, so8t={"trace": True}).so8t for prompt in PROMPTS]


@pytest.mark.parametrize("tool", ["llama-completion", "llama-cli"])
def test_the_tools_give_the_verdicts_of_the_copy(runtime, stock, heads, copy, parts, tmp_path, tool, monkeypatch):
    expected = complete(runtime, tool, copy, tmp_path)
    assert {verdict["decision"] for verdict in expected} >= {"allow", "refuse"}
    assert complete(runtime, tool, stock, tmp_path, "--so8t-heads", heads) == expected
    twice = [flag for part in parts for flag in ("--so8t-heads", part)]
    assert complete(runtime, tool, stock, tmp_path, *twice) == expected
    assert complete(runtime, tool, stock, tmp_path, "--so8t-heads", ",".join(map(str, parts))) == expected
    monkeypatch.setenv("LLAMA_ARG_SO8T_HEADS", str(heads))
    assert complete(runtime, tool, stock, tmp_path) == expected
    # an option stands over its variable
    (one,) = complete(runtime, tool, stock, tmp_path, "--so8t-heads", parts[0])[:1]
    assert list(one["answer"]["heads"]) == ["safety"]


def test_a_server_gives_the_verdicts_of_the_copy_and_gives_them_after_a_sleep(runtime, serve_here, stock, heads, copy):
    expected = ask(serve_here(copy, *POLICY.flags))
    with Server(
        runtime / "llama-server", "-m", stock, "--so8t-heads", heads, *SMALL, *POLICY.flags, "--sleep-idle-seconds", 1
    ) as server:
        assert ask(server) == expected
        told = server.get("/so8t")
        assert told["heads"] == serve_here(copy, *POLICY.flags).get("/so8t")["heads"]
        wait_for_sleep(server)
        assert ask(server) == expected
        wait_for_sleep(server)
        assert server.get("/so8t")["model"] == told["model"]
        assert server.post("/v1/moderations", {"input": ["fine", "bomb"]})["results"][1]["flagged"]


def test_heads_beside_a_model_with_heads(serve_here, parts, stock, copy, tmp_path):
    """The hash of a base leaves the heads out that others have attached to it."""
    first = tmp_path / "first.gguf"
    attach(stock, parts[:1], first)
    assert ask(serve_here(first, "--so8t-heads", parts[1], *POLICY.flags)) == ask(serve_here(copy, *POLICY.flags))


def test_the_log_names_each_heads_file(runtime, stock, parts, tmp_path):
    log = tmp_path / "audit.jsonl"
    flags = ("--so8t-heads", ",".join(map(str, parts)), "--so8t-audit", log, *POLICY.flags)
    expected = [{"path": str(part), "sha256": hashlib.sha256(part.read_bytes()).hexdigest()} for part in parts]
    with Server(runtime / "llama-server", "-m", stock, *SMALL, *flags) as server:
        assert CHAT.ask(server, "go").refusal == REFUSAL
        model = server.get("/so8t")["model"]
        assert (model["heads_files"], model["sha256"]) == (expected, model_sha256(stock))
    opened = next(record for _, record in Log(log).records(lambda line: pytest.fail(f"{line.problem}")))
    assert opened["model"]["heads_files"] == expected and opened["model"]["sha256"] == model_sha256(stock)
    report = verify(log, model_sha256=model_sha256(stock))
    assert report.ok
    assert [note for note in report.notes if "the heads of the file" in note] == [
        f"{log}:1 (seq 1): the heads of the file {file['path']} ({file['sha256']}) judge from here on"
        for file in expected
    ]


def test_it_is_told_what_each_head_reads(runtime, stock, heads, tmp_path):
    from llama_so8t.upstream import gguf

    kinds = gguf.GGUFValueType
    safety = {
        Keys.HEAD_TAPS: gguf.GGUFValue([0], kinds.ARRAY, kinds.INT32),
        Keys.HEAD_TAP_NORM: "rms",
        Keys.HEAD_AGGREGATION: "window",
        Keys.HEAD_DEBOUNCE: 2,
        Keys.HEAD_WINDOW: 3,
        Keys.HEAD_EMA_ALPHA: 0.25,
        Keys.HEAD_PROMPT_AGGREGATION: ["token", "ema"],
        Keys.HEAD_PROMPT_THRESHOLDS: gguf.GGUFValue([0.5, 0.7, 0.9, 0.5, 0.75, 0.875], kinds.ARRAY, kinds.FLOAT32),
    }
    keys = {key.format(name="safety"): value for key, value in safety.items()}
    keys |= {
        key.format(name="authority"): value
        for key, value in (
            (Keys.HEAD_LINK, "sigmoid"),
            (Keys.HEAD_DEPENDS_ON, "safety"),
            (Keys.HEAD_SCOPE, "answer"),
        )
    }
    file = gguf_files.copy_gguf(heads, tmp_path / "more.heads.gguf", keys)
    log = tmp_path / "audit.jsonl"
    with Server(
        runtime / "llama-server",
        "-m",
        stock,
        "--so8t-heads",
        file,
        *SMALL,
        *POLICY.flags,
        "--so8t-audit",
        log,
        "--so8t-threshold",
        "safety/disputed=0.625",
    ) as server:
        told = server.get("/so8t")["heads"]
        assert server.get("/props")["so8t"]["heads"] == told
    expected = {
        "form": "linear", "taps": [0], "tap_norm": "rms", "link": "softmax", "rule": "threshold", "debounce": 2,
        "aggregation": "window", "window": 3, "ema_alpha": 0.25, "prompt_aggregation": ["token", "ema"],
        "prompt_thresholds": {
            "token": {"safe": 0.5, "disputed": 0.625, "unsafe": 0.9},
            "ema": {"safe": 0.5, "disputed": 0.625, "unsafe": 0.875},
        },
        "depends_on": None,
    }  # fmt: skip
    assert expected.items() <= told["safety"].items() and "sliding_window" not in told["safety"]
    expected = {
        "form": "linear", "taps": [-1], "tap_norm": "none", "link": "sigmoid", "aggregation": "run",
        "prompt_aggregation": ["token"], "depends_on": "safety", "scope": "answer",
    }  # fmt: skip
    assert expected.items() <= told["authority"].items()
    assert not {"window", "ema_alpha", "prompt_thresholds"} & set(told["authority"])
    opened = next(record for _, record in Log(log).records(lambda line: pytest.fail(f"{line.problem}")))
    assert opened["model"]["heads"] == told


def test_each_model_of_a_router_has_its_heads(runtime, stock, parts, tmp_path):
    """Also of an option that is repeated: the router hands options on."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "stock.gguf").symlink_to(stock)
    twice = [flag for part in parts for flag in ("--so8t-heads", part)]
    with Server(runtime / "llama-server", "--models-dir", folder, *SMALL, *POLICY.flags, *twice) as router:
        assert CHAT.ask(router, "go", model="stock").refusal == REFUSAL
        told = router.get("/so8t?model=stock")
        assert list(told["heads"]) == list(HEADS)
        assert [file["path"] for file in told["model"]["heads_files"]] == list(map(str, parts))
    preset = tmp_path / "models.ini"
    preset.write_text(f"[one]\nmodel = {stock}\nso8t-heads = {parts[0]}\n[bare]\nmodel = {stock}\n")
    with Server(runtime / "llama-server", "--models-preset", preset, *SMALL, *POLICY.flags) as router:
        assert CHAT.ask(router, "go", model="one").refusal == REFUSAL
        assert CHAT.ask(router, "go", model="bare").refusal is None
        assert list(router.get("/so8t?model=one")["heads"]) == ["safety"]


def refused(runtime: Path, tool: str, file: Path, flags: list) -> str:
    """What a tool says of the heads before it ends; a line of llama.cpp's own says that there is no context."""
    prompt = ["-p", "fine", "-n", 1] if tool != "llama-server" else ["--port", 0, "--no-webui"]
    result = subprocess.run(
        [runtime / tool, "-m", file, "-t", "1", "-c", "512", "--no-warmup", *map(str, prompt), *map(str, flags)],
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    lines = (result.stdout + result.stderr).splitlines()
    return "\n".join(line for line in lines if "error" in line and "heads" in line)


WRONG = [
    ("missing", "cannot read '{}': No such file or directory"),
    ("empty", "expected the name of a file"),
    ("folder", "cannot be read"),
    ("text", "cannot be read as GGUF"),
    ("model", "the file is no heads file (key 'general.type')"),
    ("sha256", f"belong to a base whose tensors have the hash {'0' * 64}, those of"),
    ("no hash", "key 'so8t.base_sha256' is 'latest', expected 64 hex digits"),
    ("hash type", "key 'so8t.base_sha256' is"),
    ("layers", "the heads belong to a base with 'so8t.block_count' 7, the model has 1"),
    ("architecture", "the heads belong to a base of the architecture 'qwen3', the model is of 'llama'"),
    ("twice", "the model has a head 'safety' already, expected heads of other names"),
    ("no heads", "the file has no heads"),
]


@pytest.mark.parametrize(("kind", "words"), WRONG, ids=[kind for kind, _ in WRONG])
def test_what_does_not_fit_is_one_line(runtime, stock, heads, copy, tmp_path, kind, words):
    file, keys, model = tmp_path / "x.heads.gguf", {}, stock
    match kind:
        case "empty":
            file = ""
        case "folder":
            file.mkdir()
        case "text":
            file.write_text("heads")
        case "model":
            file = copy
        case "twice":
            file = heads
            model = copy
        case "sha256":
            keys = {Keys.BASE_SHA256: "0" * 64}
        case "no hash":
            keys = {Keys.BASE_SHA256: "latest"}
        case "hash type":
            from llama_so8t.upstream import gguf

            keys = {Keys.BASE_SHA256: gguf.GGUFValue(7, gguf.GGUFValueType.UINT32)}
        case "layers":
            keys = {"so8t.block_count": 7}
        case "architecture":
            keys = {Keys.BASE_ARCHITECTURE: "qwen3"}
        case "no heads":
            keys = {Keys.HEADS: None} | {k: None for k in read_gguf(heads).metadata if k.startswith("so8t.head.")}
    if keys:
        gguf_files.copy_gguf(heads, file, keys)
    for tool in ("llama-completion", "llama-cli", "llama-server"):
        line = refused(runtime, tool, model, ["--so8t-heads", file])
        assert words.format(file) in line and "\n" not in line, line


def test_the_same_file_twice_is_an_error(runtime, stock, heads):
    line = refused(runtime, "llama-completion", stock, ["--so8t-heads", heads, "--so8t-heads", heads])
    assert "the model has a head 'safety' already" in line and "\n" not in line


def test_heads_that_are_changed_while_a_server_sleeps_do_not_judge(runtime, stock, heads, tmp_path):
    file = tmp_path / "x.heads.gguf"
    file.write_bytes(heads.read_bytes())
    flags = ("--so8t-heads", file, *POLICY.flags, "--sleep-idle-seconds", 1)
    with Server(runtime / "llama-server", "-m", stock, *SMALL, *flags) as server:
        wait_for_sleep(server)
        gguf_files.copy_gguf(heads, file, tensors={"so8t_head.safety.weight": np.zeros_like})
        with pytest.raises((OSError, HTTPException)):
            CHAT.ask(server, "go")
        server.process.wait()
        assert "was changed since the model was first loaded" in server.output()
