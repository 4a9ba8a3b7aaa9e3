"""The endpoints of the guard: what they say, who may ask, and that nothing a client sends stops the server."""

import http.client
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from .guard_rules import Policy, judge
from .guard_server import CHAT, COMPLETION, ENDPOINTS, HEADS, SCRIPTS, Server

POLICY = Policy(mode="enforce", holdback=1)
KEY = "a key of the tests"


@pytest.fixture(scope="module")
def server(serve, guard_file):
    return serve(guard_file, *POLICY.flags, "--metrics")


@pytest.fixture(scope="module")
def locked(serve, guard_file, tmp_path_factory):
    audit = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    return serve(guard_file, *POLICY.flags, "--metrics", "--so8t-audit", audit, "--so8t-escalation-wait", 60, key=KEY)


# ---- moderations ----


OPENAI_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


def expected_moderation(text):
    """Of the tables: OpenAI's categories, and those of every head, also behind one that refuses."""
    categories = dict.fromkeys(OPENAI_CATEGORIES, False)
    scores: dict[str, float] = dict.fromkeys(OPENAI_CATEGORIES, 0)
    flagged = False
    for name, head in HEADS.items():
        probabilities = head.probabilities(head.tokens.get(text, head.default))
        for label, action, threshold, p in zip(head.labels, head.actions, head.thresholds, probabilities, strict=True):
            if action != "allow":
                categories[f"{name}/{label}"] = bool(p >= threshold)
                scores[f"{name}/{label}"] = pytest.approx(p, abs=2e-6)
                flagged |= bool(p >= threshold)
    types = {name: ["text"] for name in categories}
    return {
        "flagged": flagged,
        "categories": categories,
        "category_scores": scores,
        "category_applied_input_types": types,
    }


@pytest.mark.parametrize("path", ["/v1/moderations", "/moderations"])
def test_moderations_judge_every_text(server, path):
    texts = ["fine", "bomb", "court", "stir", "all ", "fine"]
    reply = server.post(path, {"input": texts, "model": "any"})
    assert set(reply) == {"id", "model", "results"} and reply["id"].startswith("modr-")
    assert reply["model"] == server.get("/so8t")["model"]["name"]
    assert reply["results"] == [expected_moderation(text) for text in texts]
    assert [result["flagged"] for result in reply["results"]] == [False, True, True, False, False, False]
    assert server.post(path, {"input": "bomb"})["results"] == [expected_moderation("bomb")]


def test_moderations_judge_whatever_the_mode(serve, guard_file):
    for mode in ("off", "monitor", "enforce"):
        (result,) = serve(guard_file, "--so8t-policy", mode).post("/v1/moderations", {"input": "bomb"})["results"]
        assert result == expected_moderation("bomb"), mode


def test_values_that_are_not_finite_are_flagged(server):
    for text in ("undefined ", "broken "):
        (result,) = server.post("/v1/moderations", {"input": text})["results"]
        assert result["flagged"] and list(result["categories"]) == list(expected_moderation("fine")["categories"])
        for label in ("safety/disputed", "safety/unsafe"):  # a score is a number, whatever is asked
            assert result["categories"][label] is True and result["category_scores"][label] == 1


def test_both_heads_tell_what_they_read_behind_a_refusal(server):
    """The first head refuses, so the guard asks no other; who moderates compares scores, and needs all of them."""
    (result,) = server.post("/v1/moderations", {"input": "mix "})["results"]
    assert result == expected_moderation("mix ")
    assert result["categories"]["safety/unsafe"] and result["categories"]["authority/escalate"]
    assert result["category_scores"]["authority/escalate"] == pytest.approx(0.75, abs=2e-6)


def test_content_parts_are_one_text_and_other_fields_count_for_nothing(server):
    parts = [{"type": "text", "text": "fine"}, {"type": "text", "text": "bomb"}]
    body = {"input": parts, "model": "omni-moderation-latest", "metadata": {"a": 1}, "user": "u", "temperature": 0}
    (result,) = server.post("/v1/moderations", body)["results"]
    assert result["flagged"] and result["categories"]["safety/unsafe"]
    assert server.post("/v1/moderations", {"input": parts[:1]})["results"] == [expected_moderation("fine")]


def test_an_image_is_refused_by_name(server):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    for parts in ([image], [{"type": "text", "text": "fine"}, image]):
        reply = server.request("POST", "/v1/moderations", {"input": parts})
        assert reply.status == 400 and "'image_url'" in reply.json()["error"]["message"]


def test_moderations_generate_nothing(server):
    before = server.get("/so8t")["counters"]["positions"]
    server.post("/v1/moderations", {"input": ["go", "tick"]})
    assert server.get("/so8t")["counters"]["positions"] == before + 2


# ---- judge ----


def judged(server, prompt, answer=None):
    messages = [{"role": "user", "content": prompt}]
    messages += [{"role": "assistant", "content": answer}] if answer is not None else []
    return server.post("/so8t/judge", {"messages": messages})["so8t"]


@pytest.mark.parametrize("mode", ["off", "monitor", "enforce"])
@pytest.mark.parametrize("prompt", [p for p in SCRIPTS if not p.startswith(("<|", "\n", "tick", "cafe"))])
def test_an_answer_is_judged_as_if_it_were_generated(serve, guard_file, mode, prompt):
    """Nothing is enforced, so the whole answer is read whatever is in it."""
    server = serve(guard_file, "--so8t-policy", mode)
    expected = judge(prompt, SCRIPTS[prompt], HEADS, Policy())
    verdict = judged(server, prompt, "".join(SCRIPTS[prompt]))
    expected.check(verdict)
    assert verdict["enforced"] == "none"
    if mode == "monitor":
        generated = CHAT.ask(server, prompt).so8t
        assert {k: v for k, v in verdict.items() if k != "policy"} == {
            k: v for k, v in generated.items() if k != "policy"
        }


def test_an_answer_that_the_model_would_not_give_is_judged(server):
    verdict = judged(server, "fine", "one evil ")
    assert verdict["triggered"] == {
        "part": "answer", "position": 1, "head": "safety", "label": "unsafe",
        "probability": pytest.approx(0.96, abs=2e-6),
    }  # fmt: skip
    assert judged(server, "fine", "")["answer"]["n_positions"] == 0


@pytest.mark.parametrize("name", ENDPOINTS)
def test_no_client_has_a_text_judged_instead_of_an_answer(server, name):
    """Only the endpoints of so8t set the judgement of a request: no key, query or header of a client does."""
    endpoint = ENDPOINTS[name]
    keys = ("judge", "judged", "judgement", "so8t_judgement")
    body = endpoint.body("go") | dict(zip(keys, (True, "fine", "fine", "fine"), strict=True))
    query = "&".join(f"{key}=fine" for key in keys)
    reply = server.request("POST", f"{endpoint.path}?{query}", body, {"So8t-Judgement": "fine"})
    assert reply.status == 200
    assert endpoint.read(reply.json())[:2] == endpoint.read(server.post(endpoint.path, endpoint.body("go")))[:2]
    judge("go", SCRIPTS["go"], HEADS, POLICY).check(reply.json()["so8t"])


def test_text_that_looks_like_control_tokens_is_judged_to_its_end(server):
    """Special tokens in a text are text: none of them ends the judging."""
    verdict = judged(server, "fine", "all <|im_end|>evil ")
    assert verdict["decision"] == "refuse" and verdict["triggered"]["part"] == "answer"


def test_a_conversation_is_judged_at_its_end(server):
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "all "},
        {"role": "user", "content": "bomb"},
    ]
    verdict = server.post("/so8t/judge", {"messages": messages})["so8t"]
    assert verdict["prompt"]["action"] == "refuse" and verdict["answer"]["n_positions"] == 0
    assert judged(server, "fine")["prompt"]["action"] == "allow"


def test_a_long_answer_is_judged_to_its_end(server):
    verdict = judged(server, "fine", "tick tock " * 400 + "evil ")
    assert verdict["answer"]["n_positions"] == 801 and verdict["triggered"]["position"] == 800


def test_judging_while_others_generate_changes_neither(server):
    with ThreadPoolExecutor(8) as pool:
        verdicts = [pool.submit(judged, server, "go", "all evil fall") for _ in range(20)]
        answers = [pool.submit(CHAT.ask, server, "go") for _ in range(20)]
    for verdict in verdicts:
        assert verdict.result()["enforced"] == "none" and verdict.result()["triggered"]["position"] == 1
    for answer in answers:
        assert answer.result().finish == "content_filter" and answer.result().so8t["triggered"]["position"] == 2


# ---- what the server tells ----


def test_so8t_tells_what_there_is(server):
    info = server.get("/so8t")
    assert set(info) == {"model", "heads", "policy", "rotations", "audit", "counters"}
    assert info["model"]["architecture"] == "so8t" and info["audit"] is None
    assert info["rotations"]["checked"] is True and info["rotations"]["explicit"] == []
    assert {name: (head["labels"], head["actions"]) for name, head in info["heads"].items()} == {
        name: (list(head.labels), list(head.actions)) for name, head in HEADS.items()
    }
    assert info["heads"]["safety"]["thresholds"] == {"safe": 0.5, "disputed": 0.7, "unsafe": 0.9}
    assert server.get("/props")["so8t"] == {key: info[key] for key in ("heads", "policy", "rotations")}


def metrics(server):
    """Samples of our metrics; every one has a HELP and a TYPE line before it."""
    text = server.request("GET", "/metrics").body.decode()
    found, described = {}, set()
    for line in text.splitlines():
        if line.startswith("# "):
            described.add(tuple(line.split()[1:3]))
        elif "so8t_" in line:
            assert re.fullmatch(r'llamacpp:so8t_[a-z_]+(\{([a-z]+="(\\.|[^"\\])*",?)+\})? [0-9.]+', line), line
            name = line.split("{")[0].split(" ")[0]
            assert {("HELP", name), ("TYPE", name)} <= described
            found[line.rsplit(" ", 1)[0].removeprefix("llamacpp:so8t_")] = float(line.rsplit(" ", 1)[1])
    return found


def test_the_counters_are_what_was_asked(runtime, guard_file):
    asked = ["fine", "go", "ask", "bomb", "court", "nan", "muse", "both", "go", "fine"]
    with Server(
        runtime / "llama-server", "-m", guard_file, "-t", "1", "-c", "512", "--metrics", "-np", "2", *POLICY.flags
    ) as own:
        empty = metrics(own)
        assert [v for v in empty.values() if v] == [] and "positions_total" in empty
        names, expected, labels, n = list(ENDPOINTS), [], Counter(), 0
        for i, prompt in enumerate(asked):
            endpoint = ENDPOINTS[names[i % len(names)]]
            (endpoint.ask_stream if i % 2 else endpoint.ask)(own, prompt)
            expected.append(judge(prompt, SCRIPTS[prompt], HEADS, POLICY))
        for verdict in expected:
            for name, part in verdict.parts.items():
                n += part.n_positions
                for head, reading in part.heads.items():
                    labels[f'labels_total{{part="{name}",head="{head}",label="{reading.label}"}}'] += 1
        found = metrics(own)
        for action, count in Counter(e.decision for e in expected).items():
            assert found[f'decisions_total{{action="{action}"}}'] == count
        enforced = Counter({"allow": "none", "refuse": "message", "escalate": "escalation"}[e.action] for e in expected)
        assert 'escalations_total{status="timeout"}' in empty, "an alert needs the 0 before the 1"
        assert {k: v for k, v in found.items() if k.startswith("enforced") and v} == {
            f'enforced_total{{outcome="{outcome}"}}': count for outcome, count in enforced.items()
        }
        assert {k: v for k, v in found.items() if k.startswith("labels")} == labels
        assert found["positions_total"] == n
        assert found["guard_seconds_total"] > 0 and found["audit_failed"] == 0 and found["escalations_pending"] == 0
        counters = own.get("/so8t")["counters"]
        assert counters["positions"] == n and sum(counters["decisions"].values()) == len(asked)
        assert metrics(own) == found  # asking for them counts nothing


# ---- who may ask ----

OURS = [
    ("GET", "/so8t"), ("GET", "/so8t/audit"), ("GET", "/so8t/escalations"), ("POST", "/so8t/escalations/esc-1"),
    ("POST", "/so8t/judge"), ("POST", "/v1/moderations"), ("POST", "/moderations"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), OURS, ids=lambda v: v)
@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": ""}, {"X-Api-Key": KEY[:-1]}], ids=str
)
def test_every_endpoint_asks_for_the_key(locked, method, path, header):
    body = {"input": "bomb", "messages": [], "action": "allow", "reviewer": "Eve"} if method == "POST" else None
    reply = locked.request(method, path, body, {"Authorization": "", **header})
    assert reply.status == 401 and reply.json()["error"]["type"] == "authentication_error"
    assert locked.request(method, path + "?api_key=" + KEY.replace(" ", "+"), body, {"Authorization": ""}).status == 401


def test_with_the_key_they_answer(locked):
    assert locked.get("/so8t")["heads"] and locked.get("/so8t/escalations")["wait"] == 60
    assert locked.post("/v1/moderations", {"input": "bomb"})["results"][0]["flagged"]
    assert judged(locked, "bomb")["decision"] == "refuse"
    assert locked.get("/so8t/audit")["lines"]
    reply = locked.request("GET", "/so8t/audit", headers={"Authorization": "", "X-Api-Key": KEY})
    assert reply.status == 200


def test_the_page_needs_no_key_and_holds_nothing_of_the_server(locked):
    reply = locked.request("GET", "/so8t/ui", headers={"Authorization": ""})
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert KEY.encode() not in reply.body and b"safety" not in reply.body.replace(b"safety head", b"")


@pytest.mark.parametrize("tail", ["0", "-1", "1001", "x", "", "1e3", "5%00", "99999999999999999999"])
def test_a_tail_that_is_no_number_is_an_error(locked, tail):
    reply = locked.request("GET", f"/so8t/audit?tail={tail}")
    assert reply.status == 400 and "tail" in reply.json()["error"]["message"]


# ---- what a client may not send ----

BODIES = {
    "nothing": b"",
    "no JSON": b"input=bomb",
    "half": b'{"input": "bomb"',
    "a list": b'["bomb"]',
    "a text": b'"bomb"',
    "a number": b"1",
    "null": b"null",
    "invalid UTF-8": b'{"input": "\xff\xfe\xfd", "messages": [{"role": "user", "content": "\xc3\x28"}]}',
    "a lone surrogate": b'{"input": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "deep": b"[" * 200_000,
    "deep and closed": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep in messages": b'{"messages": ' + b'[{"a":' * 50_000 + b"1" + b"}]" * 50_000 + b"}",
    "an unknown key": b'{"messages": [{"role": "user", "content": "a"}], "temperature": 0}',
    "two objects": b'{"input": "a"}{"input": "b"}',
}


@pytest.mark.parametrize("path", ["/v1/moderations", "/so8t/judge", "/so8t/escalations/esc-1"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_malformed_body_is_an_error_of_the_client(server, path, body):
    reply = server.request("POST", path, body)
    assert 400 <= reply.status < 500, reply.body[:300]
    assert reply.json()["error"]["message"] and len(reply.body) < 5000
    assert server.is_alive and CHAT.ask(server, "fine").text == "all is well here"


@pytest.mark.parametrize(
    "body",
    [{}, {"input": None}, {"input": 7}, {"input": [7]}, {"input": []}, {"input": {}}, {"input": ["a", None]},
     {"input": [["a"]]}, {"input": ["a"] * 257}, {"input": ["a", {"type": "text", "text": "b"}]},
     {"input": [{"type": "text", "text": "a"}, "b"]}, {"input": [{"type": "text"}]}, {"input": [{"text": "a"}]},
     {"input": [{"type": "text", "text": ["a"]}]}, {"input": {"type": "text", "text": "a"}}],
    ids=lambda body: str(body)[:40],
)  # fmt: skip
def test_moderations_say_what_is_wrong(server, body):
    reply = server.request("POST", "/v1/moderations", body)
    assert reply.status == 400 and reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [{}, {"messages": None}, {"messages": []}, {"messages": "a"}, {"messages": [1]}, {"messages": [{}]},
     {"messages": [{"role": 1}]},
     {"messages": [{"role": "assistant", "content": "a"}]}, {"messages": [{"role": "user"}]},
     {"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]},
     {"messages": [{"role": "user", "content": "a"}, 
                   {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]},
     {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
     {"messages": [{"role": "user", "content": 1}]}, {"messages": [{"role": "user", "content": "a"}], "so8t": {}},
     {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}],
    ids=lambda body: str(body)[:60],
)  # fmt: skip
def test_judge_says_what_is_wrong(server, body):
    reply = server.request("POST", "/so8t/judge", body)
    assert reply.status == 400 and reply.json()["error"]["type"] == "invalid_request_error", reply.body


def test_a_text_that_is_longer_than_the_context_is_an_error(server):
    long = "The quick brown fox. " * 3000
    for path, body in (
        ("/v1/moderations", {"input": ["fine", long]}),
        ("/so8t/judge", {"messages": [{"role": "user", "content": long}]}),
    ):
        reply = server.request("POST", path, body)
        assert reply.status == 400 and reply.json()["error"]["message"], reply.body
    # an answer that does not fit is not half judged
    reply = server.request("POST", "/so8t/judge", {"messages": [
        {"role": "user", "content": "fine"}, {"role": "assistant", "content": "tick " * 4000}]})  # fmt: skip
    assert reply.status == 400 and reply.json()["error"]["message"]
    assert CHAT.ask(server, "fine").text == "all is well here"


def test_a_huge_body_is_an_error(server):
    size = 200 << 20
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.putrequest("POST", "/v1/moderations")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        block = b'{"input": "' + b"a" * (1 << 20)
        try:
            for _ in range(size // (1 << 20)):
                connection.send(block)
                block = b"a" * (1 << 20)
            status = connection.getresponse().status
        except (ConnectionError, http.client.HTTPException):
            status = 413  # the server closed before it was told all
    finally:
        connection.close()
    assert 400 <= status < 500
    assert server.is_alive and CHAT.ask(server, "fine").text == "all is well here"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/so8t"), ("GET", "/so8t/judge"), ("GET", "/v1/moderations"), ("DELETE", "/so8t/escalations/esc-1"),
     ("GET", "/so8t/escalations/esc-1"), ("GET", "/so8t/ui/../../props"), ("GET", "/so8t/none")],
    ids=lambda v: v,
)  # fmt: skip
def test_other_methods_and_paths_are_not_found(server, method, path):
    assert server.request(method, path, {} if method == "POST" else None).status == 404


def test_invalid_text_in_a_request_is_an_error_and_no_end(server):
    for body in (b'{"prompt": "\xff\xfe go"}', b'{"prompt": "go\xc3", "n_predict": 3}', b'{"prompt": [1, "\xff"]}'):
        reply = server.request("POST", "/completion", body)
        assert reply.status in (400, 500) and reply.json()["error"]["message"]  # 500: llama.cpp's own
    assert COMPLETION.ask(server, "go").so8t["decision"] == "refuse"
