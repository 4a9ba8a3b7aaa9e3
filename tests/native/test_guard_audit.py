"""The audit log of llama-server: what stands in it, and what becomes of it when things go wrong."""

import hashlib
import hmac
import json
import os
import re
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import audit_writer as w
import pytest
from required import mount_tmpfs
from scripted_model import CHATML, scripted_gguf

from llama_so8t.audit import Log, verify
from llama_so8t.audit.anchor import read_anchor
from llama_so8t.audit.search import find, read_key
from llama_so8t.audit.statistics import statistics
from llama_so8t.cli import main
from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions
from llama_so8t.errors import RuntimeLibraryError
from llama_so8t.files.tensor_hash import model_sha256

from .guard_server import (
    CHAT,
    COMPLETION,
    ENDPOINTS,
    HEADS,
    INFILL,
    MESSAGES,
    RESPONSES,
    SCRIPTS,
    SMALL,
    TEXT,
    Answer,
    Reply,
    Server,
    Stream,
)

ENFORCE = ("--so8t-policy", "enforce")
ROUTES = Path(__file__).parents[2] / "llama_so8t/csrc/server/so8t-routes.cpp"
GENERATING = {
    path: endpoint.body
    for endpoint, paths in (
        (COMPLETION, ("/completion", "/completions")),
        (TEXT, ("/v1/completions",)),
        (CHAT, ("/chat/completions", "/v1/chat/completions")),
        (RESPONSES, ("/responses", "/v1/responses")),
        (MESSAGES, ("/v1/messages",)),
        (INFILL, ("/infill",)),
    )
    for path in paths
}
"""Endpoints that answer, streamed or not, and their bodies for a prompt."""
JUDGING = {
    "/moderations": lambda text: {"input": text},
    "/v1/moderations": lambda text: {"input": ["fine", text]},
    "/so8t/judge": lambda text: {"messages": [{"role": "user", "content": text}]},
}
NO_VERDICT = {
    "/models", "/models/load", "/models/unload", "/props", "/v1/chat/completions/control", "/v1/audio/transcriptions",
    "/audio/transcriptions", "/embedding", "/embeddings", "/v1/embeddings", "/rerank", "/reranking", "/v1/rerank",
    "/v1/reranking", "/tokenize", "/detokenize", "/apply-template", "/chat/completions/input_tokens",
    "/v1/chat/completions/input_tokens", "/responses/input_tokens", "/v1/responses/input_tokens",
    "/v1/messages/count_tokens", "/lora-adapters", "/slots/:id_slot", "/v1/streams/lookup", "/cors-proxy", "/tools",
    "/so8t/escalations/:id",
}  # fmt: skip
"""All others; transcriptions take a model that hears, and end in the answer of a chat."""
PROMPTS = ("fine", "go", "ask", "mix ", "undefined ", "muse")


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def audited(runtime, guard_file, log) -> Callable[..., Server]:
    """Starts llama-server with the log and a checkpoint beside it."""

    def start(*flags: object, log: Path = log) -> Server:
        checkpoint = ("--so8t-audit-checkpoint", log.with_name("note"))
        return Server(runtime / "llama-server", "-m", guard_file, *SMALL, "--so8t-audit", log, *checkpoint, *flags)

    return start


@pytest.fixture
def refused(audited) -> Callable[..., str]:
    """What llama-server says that does not start."""

    def start(*flags: object, log: Path) -> str:
        with pytest.raises(RuntimeLibraryError, match="ended at start") as found:
            audited(*flags, log=log).stop()
        return str(found.value)

    return start


def lines(log: Path) -> list[dict[str, Any]]:
    """Every line of the log and of its rotated files; fails where one is damaged."""

    def damaged(line) -> None:
        raise AssertionError(f"{line.place}: {line.problem}")

    return [record for _, record in Log(log).records(damaged)]


def requests(log: Path) -> dict[int, dict[str, Any]]:
    """Lines of requests by their seq."""
    return {record["seq"]: record for record in lines(log) if record["event"] == "request"}


def check_log(log: Path) -> None:
    """The chain is whole and ends where the checkpoint says."""
    report = verify(log, log.with_name("note"))
    assert report.findings == [], report.findings
    assert read_anchor(log.with_name("note")).hash == report.last.hash


def changes(trace: list[dict[str, Any]]) -> list[tuple]:
    """(part, position, head, label) wherever the likeliest label of a head changes, from the values of every token."""
    found, last = [], {}
    for token in trace:
        for head, probabilities in token["heads"].items():
            values = {label: p for label, p in probabilities.items() if p is not None}
            label = max(values, key=values.get) if values else "not finite"
            # the prompt counts its tokens in a trace, but has one verdict
            position = 0 if token["part"] == "prompt" else token["position"]
            if last.get((token["part"], head)) != label:
                found.append((token["part"], position, head, label))
            last[token["part"], head] = label
    return found


def check_line(record: dict[str, Any], verdict: dict[str, Any]) -> None:
    """A line says what the answer says."""
    assert verdict["audit"] == {"seq": record["seq"], "hash": record["hash"]}
    for field in ("decision", "enforced", "triggered"):
        assert record[field] == verdict[field]
    assert (record["policy"], record["mode"]) == (verdict["policy"]["sha256"], verdict["policy"]["mode"])
    for part in ("prompt", "think", "answer"):
        heads = verdict.get(part, {"heads": {}})["heads"]
        said = {v["head"]: v for v in record["verdicts"] if v["part"] == part}
        assert {head: v["label"] for head, v in said.items()} == {head: v["label"] for head, v in heads.items()}
    if "trace" in verdict:
        said = [(v["part"], v["position"], v["head"], v["label"]) for v in record["verdicts"]]
        assert said == changes(verdict["trace"])


def digest(log: Path, text: str) -> str:
    key = bytes.fromhex(log.with_name("audit.jsonl.key").read_text())
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def test_every_request_has_its_line(audited, log):
    answers: list[tuple[str, Answer]] = []
    with audited(*ENFORCE) as server:
        for prompt in PROMPTS:
            for endpoint in ENDPOINTS.values():
                traced = {"so8t": {"trace": True}}
                answers.append((prompt, endpoint.ask(server, prompt, **traced)))
                answers.append((prompt, endpoint.ask_stream(server, prompt, **traced)))
        server.post("/v1/moderations", {"input": ["fine", "a bomb"]})
        judged = server.post("/so8t/judge", {"messages": [
            {"role": "user", "content": "go"}, {"role": "assistant", "content": "one two bad three four"},
        ]})["so8t"]  # fmt: skip
        choices = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "go"}], "n": 2})
    found = requests(log)
    assert list(found) == list(range(2, 2 + len(answers) + 2 + 1 + 2))
    for prompt, answer in answers:
        record = found[answer.so8t["audit"]["seq"]]
        check_line(record, answer.so8t)
        assert record["prompt"]["hmac"] == digest(log, prompt)
        assert record["prompt"]["n_bytes"] == len(prompt.encode())
        assert "text" not in record["prompt"] and "text" not in record["answer"]
    assert len({answer.so8t["audit"]["seq"] for _, answer in answers}) == len(answers)
    moderated = [record for record in found.values() if record["mode"] == "judge"]
    assert [(m["decision"], m["enforced"]) for m in moderated] == [("allow", "none"), *[("refuse", "none")] * 2]
    assert judged["audit"]["seq"] == moderated[2]["seq"]
    assert moderated[2]["answer"]["hmac"] == digest(log, "one two bad three four")
    for choice in choices["choices"]:
        check_line(found[choice.get("so8t", choices["so8t"])["audit"]["seq"]], choice.get("so8t", choices["so8t"]))
    check_log(log)
    first, *_, last = lines(log)
    assert (first["event"], first["dropped_bytes"], last["event"]) == ("open", 0, "close")
    raw = log.read_bytes()
    assert not any(word in raw for word in (b"moderation", b"bomb", b"all is", b"lift"))


def test_digests_are_found_by_their_texts(audited, log):
    with audited() as server:
        COMPLETION.ask(server, "fine")
        COMPLETION.ask(server, "go")
    assert oct(os.stat(f"{log}.key").st_mode & 0o777) == "0o600"
    assert os.stat(log).st_mode & 0o137 == 0
    key = read_key(log.with_name(f"{log.name}.key"))
    records = list(Log(log).records(lambda line: pytest.fail(line.problem)))
    for text, part in (("go", "prompt"), ("one two bad three four", "answer")):
        [(_, record, where)] = find(records, key, [text.encode()])
        assert (record["seq"], where) == (3, part)
    assert list(find(records, key, [b"one two bad three"])) == []


@pytest.fixture(scope="module")
def chatml_file(tmp_path_factory, pinned_tree) -> Path:
    """The model with a template that puts its own words around a text."""
    return scripted_gguf(tmp_path_factory.mktemp("chatml") / "model", SCRIPTS, HEADS, CHATML)


TYPED = " What is <think>fine</think>,\nand for whom? \u65e5\u672c "


@pytest.mark.parametrize("path", GENERATING)
def test_a_text_is_found_as_it_was_typed(audited, log, chatml_file, path):
    with audited("-m", chatml_file) as server:
        for stream in (False, True):
            reply = server.request("POST", path, GENERATING[path](TYPED) | {"n_predict": 4, "stream": stream})
            assert reply.status == 200, reply
        COMPLETION.ask(server, "fine")
    typed, streamed, other = requests(log).values()
    role = {} if path in ("/completion", "/completions", "/v1/completions", "/infill") else {"role": "user"}
    expected = [role | {"n_bytes": len(TYPED.encode()), "hmac": digest(log, TYPED)}]
    assert typed["messages"] == streamed["messages"] == expected
    assert other["messages"] == [{"n_bytes": 4, "hmac": digest(log, "fine")}]
    records = list(Log(log).records(lambda line: pytest.fail(line.problem)))
    found = list(find(records, read_key(log.with_name(f"{log.name}.key")), [TYPED.encode()]))
    assert [record["seq"] for _, record, _ in found] == [typed["seq"], streamed["seq"]]
    check_log(log)


def test_every_text_of_a_conversation_has_its_digest(audited, log, chatml_file):
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    plain = [{"role": role, "content": text} for role, text in turns]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "more"}]},
        {"role": "assistant", "content": "two", "reasoning_content": "why"},
        {"role": "user", "content": "three"},
    ]
    items = [{"role": "user", "content": [{"type": "input_text", "text": "one"}]}, {"role": "user", "content": "three"}]
    result = [{"type": "tool_result", "tool_use_id": "t", "content": "two"}, {"type": "text", "text": "three"}]
    system = ("system", "kind")
    marks = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in (system, *turns)]
    templated = "".join(marks) + "<|im_start|>assistant\n"  # by the client, as Ollama does
    asked = [
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": "kind"}, *plain]}, [system, *turns]),
        (
            "/v1/chat/completions", {"messages": parts},
            [("user", "one"), ("user", "more"), ("assistant", "why"), *turns[1:]],
        ),
        (
            "/v1/responses", {"instructions": "kind", "input": items, "max_output_tokens": 4},
            [system, ("user", "one"), ("user", "three")],
        ),
        ("/v1/messages", {"system": "kind", "messages": plain, "max_tokens": 4}, [system, *turns]),
        (
            "/v1/messages", {"messages": [plain[0], {"role": "user", "content": result}], "max_tokens": 4},
            [("user", "one"), ("user", "three"), ("tool", "two")],
        ),
        ("/completion", {"prompt": ["one", [5, "two", 6]]}, [("", "one"), ("", "two")]),
        (
            "/infill",
            {"input_prefix": "one", "input_suffix": "two", "input_extra": [{"text": "more", "filename": "f"}]},
            [("", "more"), ("", "one"), ("", "two")],
        ),
        (
            "/infill", {"input_prefix": "one", "input_suffix": "two", "prompt": "why three"},
            [("", "one"), ("", "two"), ("", "why three")],
        ),
        ("/completion", {"prompt": templated}, [("", templated), system, *turns]),
        ("/so8t/judge", {"messages": plain}, turns),
        ("/v1/moderations", {"input": "one"}, [("user", "one")]),
    ]  # fmt: skip
    with audited("-m", chatml_file, "--so8t-audit-text") as server:
        for path, body, _ in asked:
            server.post(path, body if path in JUDGING else {"n_predict": 4} | body)
    written = list(requests(log).values())
    del written[6]  # each prompt of a list has a line, with the texts of all
    assert len(written) == len(asked)
    for record, (path, _, texts) in zip(written, asked, strict=True):
        expected = [
            ({"role": role} if role else {}) | {"n_bytes": len(text), "hmac": digest(log, text)} for role, text in texts
        ]
        assert record["messages"] == expected, path
    check_log(log)


def test_texts_only_where_they_are_wanted(audited, log, guard_file):
    with audited("--so8t-audit-text") as server:
        COMPLETION.ask(server, "go")
        # a byte that is no UTF-8, by the id of its token
        server.post("/completion", {"prompt": [3 + 0xFF, "fine"]})
    written, broken = requests(log).values()
    assert (written["prompt"]["text"], written["answer"]["text"]) == ("go", "one two bad three four")
    key = read_key(log.with_name(f"{log.name}.key"))
    assert broken["prompt"]["hmac"] == hmac.new(key, b"\xfffine", hashlib.sha256).hexdigest()
    assert (broken["prompt"]["text"], broken["prompt"]["n_bytes"]) == ("\ufffdfine", 5)
    check_log(log)


def test_a_request_that_a_client_gave_up_has_a_line(audited, log):
    with audited() as server:
        with server.open("POST", "/completion", {"prompt": "tick", "stream": True, "n_predict": 100000}) as response:
            response.readline()
        until(lambda: len(requests(log)) == 1)
    [record] = requests(log).values()
    assert record["cancelled"] is True and record["decision"] == "allow" and record["answer"]["n_tokens"] > 0
    check_log(log)


def test_the_tail_of_the_log(audited, log):
    with audited() as server:
        assert [line["event"] for line in server.get("/so8t/audit")["lines"]] == ["open"]
        for _ in range(4):
            COMPLETION.ask(server, "fine")
        tail = server.get("/so8t/audit?tail=3")
        assert tail == {"path": str(log), "lines": lines(log)[-3:]}
        assert [line["seq"] for line in server.get("/so8t/audit?tail=1000")["lines"]] == [1, 2, 3, 4, 5]
        for bad in ("0", "-1", "x", "1001", "1e2", ""):
            assert server.request("GET", f"/so8t/audit?tail={bad}").status == 400
        assert server.get("/so8t")["audit"] | {"failed": False} == server.get("/so8t")["audit"]


def test_what_a_reviewer_decided(audited, log):
    with audited(*ENFORCE, "--so8t-escalation-wait", 60) as server:
        answers = {}

        def ask(name: str) -> None:
            answers[name] = COMPLETION.ask(server, "ask")

        for name, action in (("first", "allow"), ("second", "deny")):
            thread = threading.Thread(target=ask, args=(name,))
            thread.start()
            until(lambda: any(e["status"] == "pending" for e in server.get("/so8t/escalations")["escalations"]))
            [entry] = [e for e in server.get("/so8t/escalations")["escalations"] if e["status"] == "pending"]
            server.post(f"/so8t/escalations/{entry['id']}", {"action": action, "reviewer": "Ann", "comment": name})
            thread.join()
    asked, allowed, asked_again, denied = lines(log)[1:-1]
    for request, decision, name, status in (
        (asked, allowed, "first", "allowed"), (asked_again, denied, "second", "denied"),
    ):  # fmt: skip
        assert (request["event"], request["enforced"], decision["event"]) == ("request", "held", "escalation")
        verdict = answers[name].so8t
        assert verdict["escalation"] == {"id": request["escalation"], "status": status, "reviewer": "Ann"}
        assert verdict["audit"] == {"seq": request["seq"], "hash": request["hash"]}
        assert decision["escalation"] == request["escalation"]
        assert (decision["status"], decision["reviewer"], decision["comment"]) == (status, "Ann", name)
    check_log(log)


def test_an_answer_that_nobody_decided(audited, log):
    with audited(*ENFORCE, "--so8t-escalation-wait", 1) as server:
        COMPLETION.ask(server, "ask")
    request, decision = lines(log)[1:-1]
    assert decision["escalation"] == request["escalation"]
    assert (decision["status"], decision["reviewer"]) == ("timeout", None)


def test_an_answer_that_is_held_when_the_server_ends(audited, log):
    with audited(*ENFORCE, "--so8t-escalation-wait", 600) as server:
        with server.open("POST", "/completion", {"prompt": "ask", "stream": True}):
            until(lambda: server.get("/so8t/escalations")["escalations"])
            server.process.terminate()
            server.process.wait(timeout=30)
    assert [line["event"] for line in lines(log)] == ["open", "request", "escalation", "close"]
    assert lines(log)[2]["status"] == "shutdown"
    check_log(log)


# --- from one run to the next ----------------------------------------------------------------


def test_the_next_run_goes_on_with_the_chain(audited, log):
    for _ in range(2):
        with audited() as server:
            COMPLETION.ask(server, "fine")
    assert [line["event"] for line in lines(log)] == ["open", "request", "close"] * 2
    check_log(log)


def test_a_log_that_other_code_wrote_is_continued(audited, log):
    w.rotated(log, [5, 4, 3])
    with audited() as server:
        COMPLETION.ask(server, "fine")
    assert [line["seq"] for line in lines(log)] == list(range(1, 16))
    check_log(log)


def test_a_log_goes_on_in_a_new_file_at_its_size(audited, log):
    with audited("--so8t-audit-max-size", "4K") as server:
        said = [COMPLETION.ask(server, "fine").so8t["audit"]["seq"] for _ in range(12)]
    names = sorted(file.name for file in log.parent.glob("audit.jsonl.[0-9]*"))
    assert names[:2] == ["audit.jsonl.1", "audit.jsonl.2"]
    assert list(requests(log)) == said
    for name in names:
        raw = log.with_name(name).read_bytes()
        last = json.loads(raw.splitlines()[-1])
        assert (last["event"], last["next"]) == ("rotate", log.name)
        assert 4000 <= len(raw) < 4000 + 2048  # a line has about 1 kB
    check_log(log)
    with audited("--so8t-audit-max-size", "4K") as server:
        COMPLETION.ask(server, "fine")
    check_log(log)


@pytest.mark.parametrize(("size", "rotates"), [("1M", True), ("1048576", False)])
def test_a_size_of_1m_is_a_million_bytes_as_for_split_files(audited, log, size, rotates):
    w.write(log, w.chain([w.opening(), w.request(1, prompt=w.text("x" * 1_010_000, keep=True))]))
    assert 10**6 <= log.stat().st_size < 2**20 - 20_000  # room for the lines of this server
    with audited("--so8t-audit-max-size", size) as server:
        COMPLETION.ask(server, "fine")
    assert log.with_name(f"{log.name}.1").exists() == rotates
    check_log(log)


def interrupted(log: Path, state: str) -> None:
    """A log as a server leaves it that is killed in a rotation."""
    files = w.rotated(log, [5, 4])
    rotated = log.with_name(f"{log.name}.1")
    match state:
        case "before the rename":
            rotated.replace(log)
        case "before the new file":
            log.unlink()
        case "before the first line":
            log.write_bytes(b"")
        case "in the first line":
            log.write_text(files[1][0][:100])


@pytest.mark.parametrize(
    "state", ["before the rename", "before the new file", "before the first line", "in the first line"]
)
def test_a_rotation_that_was_interrupted_is_finished(audited, log, state):
    interrupted(log, state)
    audited().stop()
    assert Path(f"{log}.1").exists() and not Path(f"{log}.2").exists()
    assert [line["seq"] for line in lines(log)] == [1, 2, 3, 4, 5, 6, 7]
    assert lines(log)[5]["dropped_bytes"] == (100 if state == "in the first line" else 0)
    check_log(log)


def test_a_killed_server_loses_nothing_that_was_answered(audited, log):
    server = audited()
    said = [COMPLETION.ask(server, "fine").so8t["audit"]["seq"] for _ in range(5)]
    server.process.kill()
    server.stop()
    assert list(requests(log)) == said
    with log.open("ab") as file:
        file.write(b'{"seq":7,"time":"2026')
    assert [f.kind for f in verify(log).findings] == ["cut"]
    with audited() as server:
        COMPLETION.ask(server, "fine")
    assert [line["event"] for line in lines(log)] == ["open", *["request"] * 5, "open", "request", "close"]
    assert lines(log)[6]["dropped_bytes"] == 21
    check_log(log)
    assert any("cut away 21 bytes" in note for note in verify(log).notes)


# --- several servers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "part"),
    [
        ("plain-1_B.v2", "plain-1_B.v2"),
        ("org/name:Q8_0", "org%2Fname%3AQ8_0"),
        ("../../evil", "%2E.%2F..%2Fevil"),
        ("..", "%2E."),
        ("a%2Fb", "a%252Fb"),
        ("\u00e4 \n{model}", "%C3%A4%20%0A%7Bmodel%7D"),
    ],
)
def test_the_name_of_a_model_stays_one_part_of_the_path(runtime, guard_file, tmp_path, alias, part):
    names = (
        tmp_path / "{model}" / "log-{model}.jsonl",
        tmp_path / "{model}" / "{model}.key",
        tmp_path / "note-{model}",
    )
    (tmp_path / part).mkdir()
    flags = [*SMALL, "--alias", alias, "--so8t-audit", names[0], "--so8t-audit-key", names[1]]
    with Server(runtime / "llama-server", "-m", guard_file, *flags, "--so8t-audit-checkpoint", names[2]) as server:
        COMPLETION.ask(server, "fine")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {f"{part}/log-{part}.jsonl", f"{part}/{part}.key", f"note-{part}"}
    assert verify(tmp_path / part / f"log-{part}.jsonl", tmp_path / f"note-{part}").findings == []


def test_a_name_that_is_too_long_for_a_file_is_an_error(runtime, guard_file, tmp_path):
    flags = [*SMALL, "--alias", "n" * 161, "--so8t-audit", tmp_path / "log-{model}.jsonl"]
    with pytest.raises(RuntimeLibraryError, match=r"(?s)error: so8t: the model has the name .*--alias"):
        Server(runtime / "llama-server", "-m", guard_file, *flags)


def test_two_servers_of_one_environment_have_a_log_each(runtime, guard_file, tmp_path, monkeypatch):
    """As Ollama starts them: no alias, files named by their hash without an extension."""
    blobs = [tmp_path / f"sha256-{digit * 64}" for digit in "ab"]
    for blob in blobs:
        blob.write_bytes(guard_file.read_bytes())
    monkeypatch.setenv("LLAMA_ARG_SO8T_AUDIT", str(tmp_path / "audit-{model}.jsonl"))
    with Server(runtime / "llama-server", "-m", blobs[0], *SMALL) as one:
        with Server(runtime / "llama-server", "-m", blobs[1], *SMALL) as other:
            for server in (one, other):
                assert COMPLETION.ask(server, "fine").so8t["audit"]["seq"] == 2
        with pytest.raises(RuntimeLibraryError, match=r"as in 'audit-\{model\}.jsonl'"):
            Server(runtime / "llama-server", "-m", blobs[0], *SMALL)
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {f"audit-{blob.name}.jsonl" for blob in blobs}


# --- refused at the start --------------------------------------------------------------------


def test_a_second_server_does_not_write_the_same_log(audited, refused, log):
    with audited() as server:
        before = log.read_bytes()
        assert "is written by another process" in refused(log=log)
        assert log.read_bytes() == before
        COMPLETION.ask(server, "fine")
    check_log(log)


def damage(log: Path, how: str) -> None:
    lines = w.run(5)
    match how:
        case "changed":
            lines[-1] = lines[-1].replace("close", "Close")
        case "a foreign line":
            lines.append("hello")
        case "zeros":
            lines.append("\0" * 100)
        case "no log":
            lines = ["hello"]
        case "a seq without end":
            lines = [w.line(2**63 - 1, "0" * 64, "close")]
    w.write(log, lines)


@pytest.mark.parametrize("how", ["changed", "a foreign line", "zeros", "no log", "a seq without end"])
def test_a_damaged_last_line_is_not_written_on(refused, log, how):
    damage(log, how)
    before = log.read_bytes()
    assert "the last line is not what its hash says" in refused(log=log)
    assert log.read_bytes() == before


def test_more_than_a_line_without_its_end_is_not_cut_away(refused, log):
    w.write(log, [*w.run(3), "x" * (16 << 20)], end="x")
    size = log.stat().st_size
    assert "the last line is not what its hash says" in refused(log=log)
    assert log.stat().st_size == size


def test_a_log_that_ends_before_its_checkpoint_is_not_written_on(refused, log):
    lines = w.run(9)
    w.checkpoint(log.with_name("note"), log.name, lines[-1])
    w.write(log, lines[:-1])
    assert "lines were cut off or written anew" in refused(log=log)
    w.write(log, [*lines[:-1], w.line(9, w.hash_of(lines[-2]), "close", more=1)])
    assert "lines were cut off or written anew" in refused(log=log)
    log.unlink()
    assert "ends at seq 0" in refused(log=log)


def test_a_file_that_is_no_checkpoint_is_not_written_over(refused, log):
    note = log.with_name("note")
    for text in ("my thesis\n", "so8t-audit/other.jsonl\n1\nAAAA\n\n"):
        note.write_text(text)
        assert "is not the checkpoint of" in refused(log=log)
        assert note.read_text() == text
    note.unlink()
    os.mkfifo(note)
    assert "is not the checkpoint of" in refused(log=log)


def test_one_name_for_two_files(refused, log):
    assert "need three names" in refused("--so8t-audit-checkpoint", log, log=log)
    assert "need three names" in refused("--so8t-audit-key", log, log=log)
    assert "need three names" in refused("--so8t-audit-key", log.with_name("note"), log=log)


def test_names_that_are_no_files(refused, log):
    target = log.with_name("target")
    log.symlink_to(target)
    assert "is a symbolic link" in refused(log=log)
    assert not target.exists()
    log.unlink()
    os.mkfifo(log)
    assert "is not a regular file" in refused(log=log)
    log.unlink()
    log.mkdir()
    assert "cannot open" in refused(log=log)
    assert "cannot open" in refused(log=log.with_name("missing") / "audit.jsonl")


@pytest.mark.parametrize("text", ["", "ab" * 31, "zz" * 32, "ab" * 33])
def test_a_key_that_is_none(refused, log, text):
    log.with_name(f"{log.name}.key").write_text(text)
    assert "expected the key of the audit log, 64 hex digits" in refused(log=log)


# --- a log that cannot be written ------------------------------------------------------------


class Limit:
    """No file of the server grows beyond ``more`` bytes behind the end of the log."""

    def __init__(self, server: Server, log: Path, more: int) -> None:
        self.pid, self.size = server.process.pid, log.stat().st_size + more
        self.before = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)

    def __enter__(self) -> "Limit":
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (self.size, self.before[1]))
        return self

    def __exit__(self, *_: object) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, self.before)


@pytest.fixture(params=["limit", "full disk"])
def full(request, log) -> Iterator[Callable]:
    """A context in which the log has no room for a line: ``full(server, log)``."""
    if request.param == "limit":
        yield lambda server: Limit(server, log, 100)
        return
    mount_tmpfs(log.parent, "256k")

    @contextmanager
    def fill(server: Server) -> Iterator[None]:
        filler = log.with_name("filler")
        with filler.open("wb", buffering=0) as file:
            try:
                for size in (4096, 1):
                    while file.write(b"\0" * size):
                        pass
            except OSError:
                pass
        try:
            yield
        finally:
            filler.unlink()

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", log.parent], check=True)


def test_under_enforce_nothing_is_answered_without_a_line(audited, log, full):
    with audited(*ENFORCE, "--so8t-audit-text", "--metrics") as server:
        COMPLETION.ask(server, "fine")
        before = lines(log)
        with full(server):
            # a page may still have room for some lines
            for _ in range(40):
                reply = server.request("POST", "/completion", {"prompt": "fine " * 100 + "fine"})
                if reply.status != 200:
                    break
            else:
                pytest.fail("the log never was full")
            check_unavailable(reply)
            n_served = len(lines(log)) - len(before)
            for path, body in GENERATING.items():
                for stream in (False, True):
                    check_unavailable(server.request("POST", path, body("go") | {"stream": stream}))
            for path, body in JUDGING.items():
                check_unavailable(server.request("POST", path, body("go")))
            assert server.post("/tokenize", {"content": "fine"})["tokens"]
            assert server.get("/so8t")["audit"]["failed"] is True
            assert b"\nllamacpp:so8t_audit_failed 1\n" in server.request("GET", "/metrics").body
            assert len(lines(log)) == len(before) + n_served
        answer = COMPLETION.ask(server, "go")
        assert answer.so8t["enforced"] == "message"
        assert server.get("/so8t")["audit"]["failed"] is False
        assert "is written again" in server.output()
    *_, refused, last, _ = lines(log)
    # the one that was generated when the room ended; later ones were refused before
    assert (refused["decision"], refused["enforced"]) == ("allow", "unavailable")
    check_line(last, answer.so8t)
    check_log(log)


def test_every_endpoint_that_generates_or_judges_is_in_the_table(pinned_tree):
    sources = (pinned_tree / "tools/server/server.cpp", ROUTES)
    found = [re.findall(r'\bpost\s*\(\s*"([^"]+)"', source.read_text()) for source in sources]
    assert all(found)
    assert {path for paths in found for path in paths} == {*GENERATING, *JUDGING, *NO_VERDICT}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_stream_that_has_begun_ends_with_the_error_and_no_verdict(audited, log, name):
    endpoint = ENDPOINTS[name]
    with audited(*ENFORCE) as server:
        before = lines(log)
        with Limit(server, log, 100):  # nothing was to be written yet, so the server does not know
            body = endpoint.body("fine") | {"stream": True}
            reply = server.request("POST", endpoint.path, body)
            check_unavailable(server.request("POST", endpoint.path, body))  # now it does
        assert len(lines(log)) == len(before)
        assert endpoint.ask_stream(server, "fine").text == "all is well here"
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream")
    stream = Stream(reply.body.decode().split("\n"))
    *parts, last = stream.events
    if name in ("messages", "responses"):
        assert stream.names[-1] == last["type"] == "error"
    if name == "responses":
        assert last["sequence_number"] == len(parts)
    check_error(last)
    assert b"[DONE]" not in reply.body and not any("so8t" in part for part in parts)
    assert b"all " in reply.body
    assert [record["enforced"] for record in requests(log).values()] == ["unavailable", "none"]
    check_log(log)


def test_lines_that_there_was_no_room_for_are_counted_in_the_log(audited, log, capsys):
    texts = ["fine"] * 256
    with audited(*ENFORCE, "--so8t-audit-on-error", "continue") as server:
        with Limit(server, log, 100):
            for _ in range(5):
                assert len(server.post("/v1/moderations", {"input": texts})["results"]) == 256
            assert server.get("/so8t")["audit"]["failed"] is True
        assert "audit" in COMPLETION.ask(server, "fine").so8t
    events = [line["event"] for line in lines(log)]
    assert events == ["open", *["request"] * 1000, "lost", "request", "close"]
    assert lines(log)[1001]["lines"] == 280
    report = verify(log, log.with_name("note"))
    assert [(finding.kind, finding.seq) for finding in report.findings] == [("lost", 1002)] and not report.ok
    assert statistics(Log(log).records(lambda line: pytest.fail(line.problem))).n_lost == 280
    assert main(["audit", "show", str(log), "--event", "lost"]) == 0
    assert capsys.readouterr().out.endswith("  lost  280 lines\n")
    database = log.with_name("log.db")
    assert main(["audit", "export", str(log), "--sqlite", str(database)]) == 0
    assert "1001 requests, 1001 messages, " in capsys.readouterr().out


def test_where_it_may_go_on_the_lines_follow_later(audited, log, full):
    with audited(*ENFORCE, "--so8t-audit-on-error", "continue", "--so8t-audit-text") as server:
        COMPLETION.ask(server, "fine")
        with full(server):
            answers = [COMPLETION.ask(server, "fine " * 100 + "fine") for _ in range(40)]
            refused = COMPLETION.ask(server, "go")
            assert refused.so8t["enforced"] == "message" and "audit" not in refused.so8t
            n_lost = sum("audit" not in answer.so8t for answer in answers) + 1
            assert n_lost > 5
        assert "audit" in COMPLETION.ask(server, "fine").so8t
    found = list(requests(log).values())
    assert len(found) == 43
    assert [record["decision"] for record in found[-3:]] == ["allow", "refuse", "allow"]
    check_log(log)


ERRORS = {
    "unavailable_error": ({"code", "message", "type"}, {"code", "message", "param", "type"}),
    "overloaded_error": ({"message", "type"},),
    "error": ({"code", "message", "param", "sequence_number", "type"},),
}
"""Forms of the error by its type: of llama.cpp and OpenAI, of Anthropic, of an event of /v1/responses."""


def check_error(body: dict[str, Any]) -> None:
    """The server says that the log cannot be written, in the form of the API (test_guard_formats.py)."""
    error = body if body.get("type") == "error" and "message" in body else body["error"]
    assert set(error) in ERRORS[error["type"]], body
    assert "the audit log cannot be written" in error["message"]


def check_unavailable(reply: Reply) -> None:
    assert reply.status == 503, reply
    check_error(reply.json())


@pytest.mark.parametrize("how", ["moved", "removed", "shortened", "written to"])
def test_a_log_that_somebody_else_touches(audited, log, how):
    other = log.with_name("elsewhere")
    with audited(*ENFORCE) as server:
        COMPLETION.ask(server, "fine")
        raw = log.read_bytes()
        match how:
            case "moved" | "removed":
                other.hardlink_to(log)
                log.unlink()
            case "shortened":
                os.truncate(log, len(raw) - 10)
            case "written to":
                with log.open("ab") as file:
                    file.write(b"hello\n")
        assert server.request("POST", "/completion", {"prompt": "fine"}).status == 503
        assert server.request("POST", "/completion", {"prompt": "fine"}).status == 503
        if how == "removed":
            return
        match how:  # put right, it goes on
            case "moved":
                other.rename(log)
            case "shortened":
                with log.open("r+b") as file:
                    file.write(raw)
            case "written to":
                os.truncate(log, len(raw))
        until(lambda: server.request("POST", "/completion", {"prompt": "fine"}).status == 200)
    check_log(log)


# --- the model -------------------------------------------------------------------------------


def hash_in_log(audited, log: Path, model: Path) -> str:
    with audited("-m", model) as server:
        assert server.get("/so8t")["model"]["sha256"] == lines(log)[-1]["model"]["sha256"]
    return lines(log)[-2]["model"]["sha256"]


def test_the_hash_of_the_model(audited, log, guard_file):
    expected = model_sha256(guard_file)
    assert hash_in_log(audited, log, guard_file) == expected
    assert verify(log, model_sha256=expected).ok


def test_the_hash_of_a_quantized_model_in_parts(audited, log, make_model, to_gguf, tmp_path):
    model = make_model("llama", tie_word_embeddings=True, max_position_embeddings=2048)
    whole = to_gguf(model, outtype="q8_0")
    convert(ConvertOptions(
        model=model, outfile=tmp_path / "split.gguf", outtype="q8_0", rotations="fold", progress=False,
        split_max_size=whole.stat().st_size // 4,
    ))  # fmt: skip
    first, *others = sorted(tmp_path.glob("split*.gguf"))
    assert len(others) >= 2
    expected = model_sha256(whole)
    assert model_sha256(first) == expected
    assert hash_in_log(audited, log, whole) == expected
    assert hash_in_log(audited, log, first) == expected


# --- helpers ---------------------------------------------------------------------------------


def until(condition: Callable[[], object], seconds: int = 60) -> None:
    """Waits for something that happens in another process."""
    for _ in range(20 * seconds):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"nothing happened within {seconds} s")
