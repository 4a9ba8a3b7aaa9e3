"""Reviewers of held answers: their keys, and the texts that they write in place of answers."""

import hashlib
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from verdict_schema import validator

from llama_so8t.audit.reviewers import add_reviewer

from .guard_rules import REFUSAL, Policy
from .guard_server import CHAT, ENDPOINTS, SCRIPTS, SMALL, Server
from .test_guard_escalations import FINISH, ask, decide, pending
from .test_held_clients import client, read

POLICY = Policy(mode="enforce", holdback=1)
HOLD = (*POLICY.flags, "--so8t-escalation-wait", 600)
WHOLE = "".join(SCRIPTS["ask"])
EDITED = "may I ask a person \u00e9?"
BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
EACH = pytest.mark.parametrize("name", ENDPOINTS)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("reviewers") / "audit.jsonl"


@pytest.fixture(scope="module")
def server(runtime, guard_file, log):
    flags = (*SMALL, *HOLD, "--so8t-audit", log, "--so8t-audit-text", "-np", 2)
    with Server(runtime / "llama-server", "-m", guard_file, *flags) as server:
        yield server


def decisions(log):
    return [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "escalation"]


# ---- texts in place of answers ----


@BOTH
@EACH
def test_a_text_of_a_reviewer_is_delivered_as_if_the_model_had_written_it(server, pool, log, name, streamed):
    waiting = pool.submit(ask, name, server, streamed)
    (entry,) = pending(server)
    assert entry["editable"] and entry["text"] is None
    reply = decide(server, entry, "allow", text=EDITED)
    assert reply.status == 200 and (reply.json()["status"], reply.json()["text"]) == ("edited", EDITED)
    answer = waiting.result(timeout=30)
    assert (answer.text, answer.finish, answer.refusal) == (EDITED, FINISH[name], None)
    assert "risk" not in json.dumps(answer.raw)
    assert (answer.so8t["decision"], answer.so8t["enforced"]) == ("escalate", "edited")
    assert answer.so8t["escalation"] == {"id": entry["id"], "status": "edited", "reviewer": "Ada"}
    assert not list(validator().iter_errors(answer.so8t))
    line = decisions(log)[-1]
    assert (line["escalation"], line["status"], line["reviewer"]) == (entry["id"], "edited", "Ada")
    assert line["text"]["n_bytes"] == len(EDITED.encode()) and line["text"]["text"] == EDITED


@BOTH
def test_every_client_that_waits_gets_the_text(server, pool, streamed):
    waiting = [pool.submit(ask, "chat", server, streamed)]
    (entry,) = pending(server)
    with client(server, "chat", streamed) as connection:
        while not [e for e in pending(server) if e["clients"] == 2]:
            pass
        decide(server, entry, "allow", text=EDITED)
        assert json.dumps("person")[1:-1] in read(connection)
    assert waiting[0].result(timeout=30).text == EDITED


def test_a_text_that_equals_the_answer_is_a_plain_allow(server, pool, log):
    waiting = pool.submit(ask, "chat", server, True)
    assert decide(server, pending(server)[0], "allow", text=WHOLE).json()["status"] == "allowed"
    assert waiting.result(timeout=30).so8t["enforced"] == "released"
    assert "text" not in decisions(log)[-1]


def test_a_stream_can_only_be_continued(server, pool):
    waiting = pool.submit(ask, "chat", server, True)
    (entry,) = pending(server)
    for text in ("must not", "ma", "", "x" * (1 << 20) + "x", 7, None):
        reply = decide(server, entry, "allow", text=text)
        assert reply.status == 400, text
    assert decide(server, entry, "deny", text="may not").status == 400
    assert pending(server)[0]["id"] == entry["id"]
    assert decide(server, entry, "allow", text="may ").json()["status"] == "edited"
    answer = waiting.result(timeout=30)
    assert (answer.text, answer.finish) == ("may ", "stop")


@pytest.mark.parametrize(
    "form",
    [{"grammar": 'root ::= "may " "risk " "more " "end"'}, {"response_format": {"type": "json_object"}},
     {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
      "tool_choice": "required"}],
    ids=["grammar", "json", "tools"],
)  # fmt: skip
def test_an_answer_of_a_fixed_form_is_not_edited(server, pool, form):
    body = {"messages": [{"role": "user", "content": "court"}], "max_tokens": 8} | form
    waiting = pool.submit(server.request, "POST", CHAT.path, body)
    (entry,) = pending(server)
    assert not entry["editable"]
    reply = decide(server, entry, "allow", text="may")
    assert reply.status == 400 and "form" in reply.json()["error"]["message"]
    assert decide(server, entry, "allow").status == 200
    assert waiting.result(timeout=30).json()["so8t"]["enforced"] == "released"


def test_a_trace_has_no_token_that_was_not_delivered(server, pool):
    for streamed, tokens in ((True, ["may ", "", "", ""]), (False, ["", "", "", ""])):
        waiting = pool.submit(ask, "completion", server, streamed, "ask", so8t={"trace": True}, n_probs=2)
        decide(server, pending(server)[0], "allow", text=EDITED)
        answer = waiting.result(timeout=30)
        assert [row["text"] for row in answer.so8t["trace"][1:]] == tokens
        assert answer.text == EDITED and "risk" not in json.dumps(answer.raw)


# ---- keys ----


@pytest.fixture(scope="module")
def reviewers(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "reviewers"


@pytest.fixture(scope="module")
def ada(reviewers):
    return add_reviewer(reviewers, "Ada Lovelace \u00e9")


@pytest.fixture(scope="module")
def keyed(runtime, guard_file, reviewers, ada, tmp_path_factory):
    log = tmp_path_factory.mktemp("keyed") / "audit.jsonl"
    flags = (*SMALL, *HOLD, "--so8t-reviewers", reviewers, "--so8t-audit", log)
    with Server(runtime / "llama-server", "-m", guard_file, *flags, key="secret") as server:
        server.log = log
        yield server


def review(server, entry, key, name="X-So8t-Reviewer-Key", **fields):
    headers = {} if key is None else {name: key}
    return server.request("POST", f"/so8t/escalations/{entry['id']}", {"action": "allow"} | fields, headers)


def test_only_a_reviewer_with_a_key_decides(keyed, pool, reviewers, ada):
    waiting = pool.submit(ask, "chat", keyed, False)
    (entry,) = pending(keyed)
    digest = hashlib.sha256(ada.encode()).hexdigest()
    for key in (None, "", "secret", "Ada Lovelace", digest, ada[:-1], ada + "x", ada.swapcase()):
        reply = review(keyed, entry, key)
        assert (reply.status, reply.json()["error"]["type"]) == (403, "permission_error"), key
    assert review(keyed, entry, ada, reviewer="Grace").status == 403
    keyed.key, key = None, keyed.key
    assert review(keyed, entry, ada).status == 401, "the key of a reviewer is none of the API"
    keyed.key = key
    assert pending(keyed) == [entry | {"remaining": pending(keyed)[0]["remaining"]}]
    reply = review(keyed, entry, ada, "x-so8t-reviewer-KEY")
    assert reply.status == 200 and reply.json()["reviewer"] == "Ada Lovelace \u00e9"
    assert waiting.result(timeout=30).so8t["escalation"]["reviewer"] == "Ada Lovelace \u00e9"
    assert [line["reviewer"] for line in decisions(keyed.log)] == ["Ada Lovelace \u00e9"]
    assert ada not in keyed.log.read_text() and ada not in keyed.output()


def test_a_line_that_is_added_or_removed_counts_at_once(keyed, pool, reviewers, ada):
    waiting = pool.submit(ask, "chat", keyed, False)
    (entry,) = pending(keyed)
    before = reviewers.read_text()
    try:
        grace = add_reviewer(reviewers, "Grace")
        other = add_reviewer(reviewers, "Grace")
        reviewers.write_text("".join(line for line in reviewers.read_text().splitlines(True) if "Ada" not in line))
        assert review(keyed, entry, ada).status == 403
        reviewers.write_text("no reviewer\n")
        reply = review(keyed, entry, grace)
        assert reply.status == 503 and "line 1" in reply.json()["error"]["message"]
        reviewers.write_text(f"# comment\n\n{hashlib.sha256(other.encode()).hexdigest().upper()}\t Grace \r\n")
        assert review(keyed, entry, grace).status == 403
        assert review(keyed, entry, other, reviewer="Grace").json()["reviewer"] == "Grace"
    finally:
        reviewers.write_text(before)
    assert waiting.result(timeout=30).text == WHOLE


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot read"), ("ada\n", "line 1"), ("0" * 63 + "  Ada\n", "line 1"), ("0" * 64 + "\n", "line 1"),
     ("# x\n" + "g" * 64 + "  Ada\n", "line 2"), ("0" * 64 + "  " + "x" * 257, "line 1"),
     ("0" * 64 + "  A\x1b[0m", "line 1"), (" " * (1 << 20) + "\n", "1 MiB")],
    ids=["missing", "name", "short", "no name", "no hex", "long", "control", "huge"],
)  # fmt: skip
def test_a_file_that_is_none_ends_the_server(runtime, guard_file, tmp_path, content, words):
    file = tmp_path / "reviewers"
    if content is not None:
        file.write_text(content)
    command = [runtime / "llama-server", "-m", guard_file, *SMALL, *HOLD, "--so8t-reviewers", file, "--port", "0"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "error: so8t" in line]
    assert done.returncode == 1 and words in line and str(file) in line


def test_without_a_file_a_reviewer_is_who_the_request_says(server, pool):
    waiting = pool.submit(ask, "chat", server, False)
    (entry,) = pending(server)
    assert review(server, entry, None).status == 400
    assert review(server, entry, "any key", reviewer="Ada", action="deny").json()["reviewer"] == "Ada"
    assert waiting.result(timeout=30).text == REFUSAL
