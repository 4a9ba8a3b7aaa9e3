"""Answers that wait for a person: released, denied, timed out, given up; and what streams look like meanwhile."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from scripted_model import CHATML, scripted_gguf

from .guard_rules import ESCALATION, REFUSAL, Policy, judge
from .guard_server import CHAT, COMPLETION, ENDPOINTS, HEADS, SCRIPTS, SMALL, Server, wait_for_sleep

POLICY = Policy(mode="enforce", holdback=1)
LONG = (*POLICY.flags, "--so8t-escalation-wait", 600, "--sse-ping-interval", 1, "-np", 1)
SHORT = (*POLICY.flags, "--so8t-escalation-wait", 1)
WHOLE = "".join(SCRIPTS["ask"])
FINISH = {"completion": "eos", "text": "stop", "chat": "stop", "responses": "completed", "messages": "end_turn"}


@pytest.fixture(scope="module")
def server(serve, guard_file):
    return serve(guard_file, *LONG)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def pending(server, n=1):
    """The held answers, as soon as there are n."""
    for _ in range(600):
        found = [e for e in server.get("/so8t/escalations")["escalations"] if e["status"] == "pending"]
        if len(found) >= n:
            return found
        time.sleep(0.02)
    raise AssertionError(f"there are not {n} escalations: {server.get('/so8t/escalations')}")


def decide(server, entry, action, reviewer="Ada", **fields):
    return server.request("POST", f"/so8t/escalations/{entry['id']}", {"action": action, "reviewer": reviewer} | fields)


def ask(name, server, streamed, prompt="ask", **options):
    endpoint = ENDPOINTS[name]
    return (endpoint.ask_stream if streamed else endpoint.ask)(server, prompt, **options)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_allowed_answer_is_released_as_it_is(server, pool, name, streamed):
    waiting = pool.submit(ask, name, server, streamed)
    (entry,) = pending(server)
    assert entry["answer"] == WHOLE and entry["prompt"] == entry["question"] == "ask"
    assert entry["triggered"] == {
        "part": "answer", "position": 1, "head": "authority", "label": "escalate", "probability": pytest.approx(0.8),
    }  # fmt: skip
    assert entry["reviewer"] is None and entry["comment"] is None
    assert entry["deadline"] - entry["created"] == 600
    reply = decide(server, entry, "allow", comment="is fine")
    assert reply.status == 200
    assert reply.json() | {"status": "allowed", "reviewer": "Ada", "comment": "is fine"} == reply.json()
    answer = waiting.result(timeout=30)
    assert (answer.text, answer.finish, answer.refusal) == (WHOLE, FINISH[name], None)
    assert answer.so8t["decision"] == "escalate" and answer.so8t["enforced"] == "released"
    assert answer.so8t["escalation"] == {"id": entry["id"], "status": "allowed", "reviewer": "Ada"}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ENDPOINTS)
def test_a_denied_answer_is_refused(server, pool, name, streamed):
    waiting = pool.submit(ask, name, server, streamed)
    (entry,) = pending(server)
    assert decide(server, entry, "deny").json()["status"] == "denied"
    answer = waiting.result(timeout=30)
    between = "\n\n" if name in ("completion", "text", "chat") else ""
    assert answer.text == (f"may {between}" if streamed else "") + REFUSAL
    assert not any(word in json.dumps(answer.raw) for word in ("risk", "more "))
    assert answer.finish == {
        "text": "content_filter", "chat": "content_filter", "responses": "incomplete/content_filter",
        "messages": "refusal",
    }.get(name, "eos")  # fmt: skip
    assert answer.refusal == (REFUSAL if name in ("chat", "responses") else None)
    assert answer.so8t["enforced"] == "denied" and answer.so8t["escalation"]["reviewer"] == "Ada"


def test_an_answer_that_nobody_decides_times_out(serve, guard_file, pool):
    server = serve(guard_file, *SHORT)
    cases = [(name, streamed) for name in ENDPOINTS for streamed in (False, True)]
    answers = list(pool.map(lambda case: ask(case[0], server, case[1]), cases))
    for (name, streamed), answer in zip(cases, answers, strict=True):
        between = "\n\n" if name in ("completion", "text", "chat") else ""
        text = f"{ESCALATION} (No reviewer decided within 1 s.)"
        assert answer.text == (f"may {between}" if streamed else "") + text, (name, streamed)
        assert (answer.finish, answer.refusal) == (FINISH[name], None)
        assert answer.so8t["enforced"] == "timeout"
        held = answer.so8t["escalation"]
        assert held["status"] == "timeout" and held["reviewer"] is None
        (entry,) = [e for e in server.get("/so8t/escalations")["escalations"] if e["id"] == held["id"]]
        assert entry["status"] == "timeout"
        late = decide(server, entry, "allow")
        assert late.status == 409 and "timeout" in late.json()["error"]["message"]


def test_a_prompt_that_escalates_is_answered_and_held(server, pool):
    waiting = pool.submit(ask, "chat", server, True, "court")
    (entry,) = pending(server)
    assert entry["answer"] == "law text" and entry["triggered"]["part"] == "prompt"
    decide(server, entry, "deny")
    assert waiting.result(timeout=30).text == REFUSAL


def test_a_refusal_in_a_held_answer_ends_it_and_nobody_is_asked(server):
    answer = CHAT.ask(server, "climb")
    assert (answer.text, answer.finish) == (REFUSAL, "content_filter")
    assert (answer.so8t["decision"], answer.so8t["enforced"]) == ("refuse", "message")
    assert "escalation" not in answer.so8t
    assert not [e for e in server.get("/so8t/escalations")["escalations"] if e["status"] == "pending"]


def test_an_answer_is_decided_once(server, pool):
    waiting = pool.submit(ask, "chat", server, False)
    (entry,) = pending(server)
    replies = list(pool.map(lambda action: decide(server, entry, action), ["allow", "deny", "allow", "deny"]))
    assert sorted(reply.status for reply in replies) == [200, 409, 409, 409]
    (first,) = [reply.json()["status"] for reply in replies if reply.status == 200]
    assert waiting.result(timeout=30).so8t["escalation"]["status"] == first
    for reply in replies:
        if reply.status == 409:
            assert first in reply.json()["error"]["message"]


def test_a_decision_that_is_not_one_leaves_the_answer_pending(server, pool):
    waiting = pool.submit(ask, "chat", server, False)
    (entry,) = pending(server)
    path = f"/so8t/escalations/{entry['id']}"
    for body in (
        {}, {"action": "allow"}, {"action": "allow", "reviewer": ""}, {"action": "allow", "reviewer": 7},
        {"action": "perhaps", "reviewer": "Ada"}, {"reviewer": "Ada"}, {"action": "allow", "reviewer": "Ada", "key": 1},
        {"action": "allow", "reviewer": "A" * 257}, {"action": "allow", "reviewer": "Ada", "comment": "c" * 4097},
        {"action": ["allow"], "reviewer": "Ada"}, b"", b"{", b"[]", b'"allow"',
        b'{"action":"allow","reviewer":"\xff"}', b"[" * 100_000,
    ):  # fmt: skip
        reply = server.request("POST", path, body)
        assert reply.status == 400, (body, reply.body)
        assert reply.json()["error"]["message"]
    for unknown in ("esc-unknown", "..", "%00", "a" * 3000):
        reply = server.request("POST", f"/so8t/escalations/{unknown}", {"action": "allow", "reviewer": "Ada"})
        assert reply.status in (404, 400), unknown
    assert pending(server) == [entry]
    assert decide(server, entry, "allow", "Grace Hopper \u00e9").json()["reviewer"] == "Grace Hopper \u00e9"
    assert waiting.result(timeout=30).so8t["escalation"]["reviewer"] == "Grace Hopper \u00e9"


def test_the_slot_of_a_held_answer_is_free(server, pool):
    """The server has one slot."""
    waiting = [
        pool.submit(ask, name, server, streamed) for name in ("chat", "completion") for streamed in (False, True)
    ]
    entries = pending(server, 4)
    assert ask("chat", server, False, "fine").text == "all is well here"
    for entry, action in zip(entries, ("allow", "deny", "allow", "deny"), strict=True):
        assert decide(server, entry, action).status == 200
    found = sorted(w.result(timeout=30).so8t["escalation"]["id"] for w in waiting)
    assert found == sorted(entry["id"] for entry in entries)


def test_every_client_gets_its_own_decision(server, pool):
    waiting = [pool.submit(ask, "completion", server, i % 2 == 0, seed=i) for i in range(6)]
    entries = pending(server, 6)
    actions = {entry["id"]: "allow" if i % 3 else "deny" for i, entry in enumerate(entries)}
    assert [decide(server, entry, actions[entry["id"]]).status for entry in reversed(entries)] == [200] * 6
    for client in waiting:
        answer = client.result(timeout=30)
        allowed = actions[answer.so8t["escalation"]["id"]] == "allow"
        assert (WHOLE in answer.text, REFUSAL in answer.text) == (allowed, not allowed)


def test_every_choice_of_an_answer_waits(serve, guard_file, pool):
    server = serve(guard_file, *POLICY.flags, "--so8t-escalation-wait", 600, "-np", 2)
    waiting = pool.submit(ask, "chat", server, False, "ask", n=2)
    first, second = pending(server, 2)
    decide(server, first, "allow")
    decide(server, second, "deny")
    choices = waiting.result(timeout=30).raw["choices"]
    assert sorted(choice["message"]["content"] for choice in choices) == sorted([WHOLE, REFUSAL])


@contextmanager
def raw_stream(server, path, body):
    """Lines of a stream as they arrive, on a connection that the test may close."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body | {"stream": True}), {"Content-Type": "application/json"})
        yield connection.getresponse()
    finally:
        connection.close()


def test_a_reviewer_is_served_however_many_wait(server):
    """A request that arrives together with one that will be held gets a thread of its own."""
    waiting = []
    try:
        for i in range(40):
            ask_first = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            look = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            waiting.append(ask_first)
            ask_first.connect(), look.connect()
            body = json.dumps(CHAT.body("ask") | {"seed": i})
            ask_first.request("POST", CHAT.path, body, {"Content-Type": "application/json"})
            look.request("GET", "/so8t/escalations")
            assert look.getresponse().status == 200
            look.close()
        entries = pending(server, 40)
    finally:
        for entry in pending(server):
            decide(server, entry, "deny")
    assert len(entries) == 40
    for connection in waiting:
        assert json.loads(connection.getresponse().read())["choices"][0]["message"]["refusal"] == REFUSAL
        connection.close()


def test_a_waiting_stream_is_kept_alive_by_comments(server):
    with raw_stream(server, CHAT.path, CHAT.body("ask")) as response:
        (entry,) = pending(server)
        lines = []
        while sum(line == ":" for line in lines) < 2:
            lines.append(response.readline().decode().rstrip("\n"))
        text = "".join(
            json.loads(line[6:])["choices"][0]["delta"].get("content") or "" for line in lines if "data" in line
        )
        assert text == "may "
        decide(server, entry, "allow")
        rest = response.read().decode()
    assert rest.rstrip().endswith("data: [DONE]") and "risk " in rest and '"released"' in rest


def test_a_server_that_ends_answers_those_who_wait(runtime, guard_file, tmp_path):
    audit = tmp_path / "audit.jsonl"
    with Server(runtime / "llama-server", "-m", guard_file, *SMALL, *LONG, "--so8t-audit", audit) as server:
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(ask, "chat", server, streamed) for streamed in (False, True)]
            pending(server, 2)
            server.process.terminate()
            assert server.process.wait(timeout=30) == 0, server.output()[-2000:]
            for streamed, client in enumerate(waiting):
                answer = client.result(timeout=30)
                text = f"{ESCALATION} (The server ended before a reviewer decided.)"
                assert answer.text == ("may \n\n" if streamed else "") + text
                assert answer.so8t["enforced"] == "shutdown" and answer.so8t["escalation"]["status"] == "shutdown"
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [line["status"] for line in lines if line["event"] == "escalation"] == ["shutdown", "shutdown"]


def test_an_answer_is_released_by_a_server_that_sleeps(runtime, guard_file, pool):
    """Without its model."""
    flags = (*SMALL, *LONG, "--sleep-idle-seconds", 1)
    with Server(runtime / "llama-server", "-m", guard_file, *flags) as server:
        waiting = [pool.submit(ask, "chat", server, True, "ask", so8t={"trace": True}, seed=i) for i in range(2)]
        entries = pending(server, 2)
        wait_for_sleep(server)
        assert server.get("/so8t")["heads"]
        for entry, action in zip(entries, ("allow", "deny"), strict=True):
            assert decide(server, entry, action).status == 200
        assert sorted(client.result(timeout=30).text for client in waiting) == sorted([WHOLE, f"may \n\n{REFUSAL}"])
        answer = CHAT.ask(server, "go")  # wakes it
        assert answer.text == REFUSAL and answer.so8t["policy"]["sha256"] == server.get("/so8t")["policy"]["sha256"]


def test_a_form_that_is_held_keeps_its_form(server, pool):
    form = {"grammar": 'root ::= "may " "risk " "more " "end"'}
    waiting = pool.submit(ask, "chat", server, True, "ask", **form)
    decide(server, pending(server)[0], "deny")
    answer = waiting.result(timeout=30)
    assert (answer.text, answer.finish, answer.refusal) == ("may ", "content_filter", REFUSAL)


def test_a_trace_has_the_text_that_was_released_and_no_other(server, pool):
    for action, tokens in (("allow", SCRIPTS["ask"]), ("deny", ["may ", "", "", ""])):
        waiting = pool.submit(ask, "completion", server, True, "ask", so8t={"trace": True})
        decide(server, pending(server)[0], action)
        trace = waiting.result(timeout=30).so8t["trace"]
        assert [row["text"] for row in trace[1:]] == tokens


def test_monitor_holds_nothing(serve, guard_file):
    server = serve(guard_file, "--so8t-policy", "monitor", "--so8t-escalation-wait", 600)
    answer = CHAT.ask(server, "ask")
    assert answer.text == WHOLE and answer.so8t["decision"] == "escalate" and answer.so8t["enforced"] == "none"
    assert server.get("/so8t/escalations")["escalations"] == []


def test_without_a_reviewer_the_text_comes_at_once(serve, guard_file):
    server = serve(guard_file, *POLICY.flags)
    assert server.get("/so8t/escalations") == {"escalations": [], "wait": 0}
    assert CHAT.ask(server, "ask").text == ESCALATION
    assert decide(server, {"id": "esc-1"}, "allow").status == 404


# ---- the lines of a stream, as Ollama reads them ----


def ollama_lines(server, path, body):
    """Chunks of a stream, read as Ollama reads them: an answer ends with the first finish_reason or stop."""
    lines = server.stream(path, body).lines
    for line in lines:
        assert line == "" or line.startswith((":", "data: ")), line
        assert len(line) < 8_000_000
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]


@pytest.mark.parametrize("prompt", ["fine", "go", "ask", "bomb", "muse", "nan"])
@pytest.mark.parametrize(
    "flags",
    [POLICY.flags, [*POLICY.flags, "--so8t-escalation-wait", "1"], ["--so8t-policy", "monitor"]],
    ids=["enforce", "held", "monitor"],
)
def test_a_stream_is_read_by_ollama(serve, guard_file, flags, prompt):
    server = serve(guard_file, *flags)
    chunks = ollama_lines(server, "/completion", COMPLETION.body(prompt) | {"cache_prompt": True})
    first = next(i for i, chunk in enumerate(chunks) if chunk["stop"])
    assert first == len(chunks) - 1
    assert chunks[-1]["timings"]["predicted_n"] >= 1 and chunks[-1]["timings"]["prompt_n"] >= 1
    assert no_long_runs([chunk["content"].strip() for chunk in chunks])

    chunks = ollama_lines(server, CHAT.path, CHAT.body(prompt) | {"cache_prompt": True})
    finished = [i for i, chunk in enumerate(chunks) if chunk["choices"] and chunk["choices"][0]["finish_reason"]]
    assert finished == [len(chunks) - 1]
    assert chunks[-1]["timings"]["predicted_n"] >= 1
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    expected = judge(prompt, SCRIPTS[prompt], HEADS, POLICY)
    if flags[1] == "enforce" and expected.action != "allow":
        assert (REFUSAL if expected.action == "refuse" else ESCALATION) in text  # Ollama shows nothing else
    assert "so8t" in chunks[-1]


def no_long_runs(texts, limit=30):
    run, before = 0, None
    for text in texts:
        run = run + 1 if text == before else 1
        if run > limit:
            return False
        before = text
    return True


def test_withheld_tokens_are_no_empty_chunks(serve, guard_file):
    """More than 30 equal chunks in a row would have Ollama end the answer."""
    server = serve(guard_file, "--so8t-policy", "enforce", "--so8t-holdback", 64, "--so8t-debounce", 64)
    chunks = ollama_lines(server, "/completion", COMPLETION.body("tick") | {"n_predict": 200})
    texts = [chunk["content"].strip() for chunk in chunks]
    assert no_long_runs(texts) and "" not in texts[:-1]
    assert "".join(chunk["content"] for chunk in chunks) == "tock tick " * 100


def test_the_question_of_a_held_answer_is_what_the_user_said_last(runtime, pool, tmp_path):
    file = scripted_gguf(tmp_path / "model", {"\n": ["may ", "risk ", "end"]}, HEADS, template=CHATML)
    with Server(runtime / "llama-server", "-m", file, *SMALL, *LONG) as server:
        said = ["be kind", "first", "hm", "  last\nquestion "]
        roles = ("system", "user", "assistant", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
        waiting = pool.submit(server.post, "/v1/chat/completions", {"messages": messages})
        (entry,) = pending(server)
        assert entry["question"].strip() == said[-1].strip() and "<|im_start|>system" in entry["prompt"]
        decide(server, entry, "allow")
        waiting.result(timeout=30)
