"""The router mode of llama-server: a process for each model, one place for clients and reviewers."""

import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scripted_model import CHATML, scripted_gguf

from llama_so8t.audit import Log, verify
from llama_so8t.audit.anchor import read_anchor
from llama_so8t.audit.reviewers import add_reviewer

from .guard_rules import REFUSAL
from .guard_server import CHAT, SCRIPTS, SMALL, Server
from .test_held_clients import client, read, wait_for

KEY = "router-key"
NAMES = ("first", "a second one")
ENFORCE = ("--so8t-policy", "enforce", "--so8t-escalation-wait", 600)


@pytest.fixture(scope="module")
def models(tmp_path_factory, guard_file) -> Path:
    """A models directory: two names for one file, and a model without heads."""
    directory = tmp_path_factory.mktemp("models")
    for name in NAMES:
        shutil.copyfile(guard_file, directory / f"{name}.gguf")
    bare = scripted_gguf(tmp_path_factory.mktemp("bare") / "model", {"fine": ["all "]}, {}, template=CHATML)
    shutil.copyfile(bare, directory / "bare.gguf")
    return directory


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def router(runtime, models, logs):
    audit = ("--so8t-audit", logs / "audit-{model}.jsonl", "--so8t-audit-checkpoint", logs / "note-{model}")
    gateways = ("--so8t-gateway", "litellm,agentgateway")
    with Server(
        runtime / "llama-server", "--models-dir", models, *SMALL, *ENFORCE, *audit, *gateways, key=KEY
    ) as server:
        yield server


def ask(router: Server, model: str, prompt: str):
    return CHAT.ask(router, prompt, model=model)


def pending(router: Server, n: int) -> list[dict]:
    for _ in range(600):
        found = [e for e in router.get("/so8t/escalations")["escalations"] if e["status"] == "pending"]
        if len(found) >= n:
            return found
        time.sleep(0.05)
    raise AssertionError(f"there are not {n} escalations: {router.get('/so8t/escalations')}")


def test_nothing_is_loaded_by_being_looked_at(router):
    models = router.get("/so8t")["models"]
    assert set(models) == {*NAMES, "bare"}
    assert router.get("/so8t/escalations")["silent"] == []


def test_each_model_is_guarded_and_says_so(router):
    for name in NAMES:
        answer = ask(router, name, "go")
        assert (answer.refusal, answer.so8t["enforced"]) == (REFUSAL, "message")
        alone = router.get(f"/so8t?model={name.replace(' ', '%20')}")
        assert alone["policy"]["mode"] == "enforce" and alone["heads"]
        assert router.get("/so8t")["models"][name] == {"status": "loaded", "so8t": alone}


def test_texts_are_judged_by_the_model_that_is_named(router):
    for name in NAMES:
        for where, body in (("", {"model": name}), (f"?model={name.replace(' ', '%20')}", {"model": "omni"})):
            found = router.post(f"/v1/moderations{where}", {"input": ["fine", "bomb"], **body})
            assert [result["flagged"] for result in found["results"]] == [False, True]
            messages = [{"role": "user", "content": "bomb"}]
            assert router.post(f"/so8t/judge{where}", {"messages": messages, **body})["so8t"]["decision"] == "refuse"


def test_gateways_name_the_model_that_judges(router):
    litellm = "/beta/litellm_basic_guardrail_api"
    body = {"input_type": "request", "texts": ["bomb"], "model": "the-model-of-the-gateway"}
    for path, more in (
        (f"{litellm}?model=first", {}),
        (litellm, {"additional_provider_specific_params": {"model": "first"}}),
    ):
        assert router.post(path, body | more)["action"] == "BLOCKED"
    messages = {"body": {"messages": [{"role": "user", "content": "bomb"}]}}
    assert router.post("/request?model=first", messages)["action"]["status_code"] == 403
    for path, asked in ((litellm, body), ("/request", messages), ("/response", {"body": {"choices": []}})):
        reply = router.request("POST", path, asked)
        assert reply.status == 400 and "names no model" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/moderations", {"input": "x"}, "names no model"),
        ("/v1/moderations", {"input": "x", "model": 1}, "names no model"),
        ("/so8t/judge", {"model": "third", "messages": []}, "no model 'third'"),
        ("/so8t/judge?model=first", b"no JSON", "no JSON"),
        ("/v1/moderations", b"[" * 100_000, "too deep"),
        ("/v1/moderations", {"input": "x", "model": "bare"}, "no heads"),
    ],
)
def test_a_wrong_request_is_answered_as_one(router, path, body, words):
    reply = router.request("POST", path, body)
    assert reply.status == 400 and words in reply.json()["error"]["message"]


def test_reviewers_see_and_decide_the_held_answers_of_all_models(router):
    with ThreadPoolExecutor(2) as pool:
        waiting = {name: pool.submit(ask, router, name, "ask") for name in NAMES}
        entries = {entry["model"]: entry for entry in pending(router, 2)}
        assert set(entries) == set(NAMES)
        assert all(entry["answer"] == "".join(SCRIPTS["ask"]) for entry in entries.values())
        for name, action in zip(NAMES, ("allow", "deny"), strict=True):
            path = f"/so8t/escalations/{entries[name]['id']}"
            reply = router.request("POST", path, {"action": action, "reviewer": "Ada"})
            assert reply.status == 200 and reply.json()["model"] == name
            again = router.request("POST", path, {"action": "deny", "reviewer": "Bob"})
            assert again.status == 409
        assert waiting[NAMES[0]].result(timeout=30).so8t["enforced"] == "released"
        assert waiting[NAMES[1]].result(timeout=30).so8t["enforced"] == "denied"
    decided = {e["model"]: e["status"] for e in router.get("/so8t/escalations")["escalations"]}
    assert decided == {NAMES[0]: "allowed", NAMES[1]: "denied"}


@pytest.mark.parametrize("id", ["unknown", "..%2Fjudge", "a%20b", "x%0d%0aHost:y"])
def test_an_id_that_nobody_knows_is_not_found(router, id):
    assert router.request("POST", f"/so8t/escalations/{id}", {"action": "deny", "reviewer": "Ada"}).status == 404


def test_everything_but_the_page_asks_for_the_key(router):
    paths = {"/so8t": None, "/so8t/audit?model=first": None, "/so8t/escalations": None,
             "/so8t/judge": {"model": "first"}, "/v1/moderations": {"model": "first"},
             "/so8t/escalations/x": {"action": "deny"}}  # fmt: skip
    for path, body in paths.items():
        method = "GET" if body is None else "POST"
        assert router.request(method, path, body, {"Authorization": "Bearer other"}).status == 401
    page = router.request("GET", "/so8t/ui", headers={"Authorization": ""})
    assert page.status == 200 and b"SO8T" in page.body


def test_each_model_has_a_log_of_its_own(router, logs):
    for name, part in zip(NAMES, ("first", "a%20second%20one"), strict=True):
        ask(router, name, "fine")
        tail = router.get(f"/so8t/audit?model={name.replace(' ', '%20')}&tail=1")
        log = logs / f"audit-{part}.jsonl"
        assert Path(tail["path"]) == log and tail["lines"][0]["event"] == "request"
        assert verify(log, logs / f"note-{part}").findings == []
        assert (logs / f"audit-{part}.jsonl.key").stat().st_mode & 0o777 == 0o600
    assert not list(logs.glob("*{model}*")) and not list(logs.glob("*bare*"))


def test_a_log_goes_on_when_its_model_is_loaded_again(router, logs):
    log, name = logs / "audit-first.jsonl", NAMES[0]
    before = read_anchor(logs / "note-first").seq
    router.post("/models/unload", {"model": name})
    for _ in range(600):
        if router.get("/so8t")["models"][name]["status"] == "unloaded":
            break
        time.sleep(0.05)
    ask(router, name, "fine")
    events = [record["event"] for _, record in Log(log).records(None) if record["seq"] > before]
    assert events[-3:] == ["close", "open", "request"]
    assert verify(log).findings == []


def start(runtime, models, directory, *flags) -> subprocess.CompletedProcess:
    """A router that does not start."""
    return subprocess.run(
        [runtime / "llama-server", "--models-dir", models, *SMALL, "--port", "0", *map(str, flags)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, cwd=directory,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--so8t-audit", "audit.jsonl"], "as in 'audit-{model}.jsonl'"),
        (["--so8t-audit", "a-{model}.jsonl", "--so8t-audit-checkpoint", "note"], "put {model} into its name, too"),
    ],
)
def test_a_setting_that_cannot_work_is_an_error_at_start(runtime, models, tmp_path, flags, words):
    result = start(runtime, models, tmp_path, *flags)
    assert result.returncode == 1 and list(tmp_path.iterdir()) == []
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert words in line


def child_of(server: Server, model: str) -> int:
    """Process id of a model."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        pid, _, rest = path.read_text(errors="replace").partition(" ")
        words = (path.parent / "cmdline").read_bytes().split(b"\0")
        if int(rest.rpartition(")")[2].split()[1]) == server.process.pid and model.encode() in words:
            return int(pid)
    raise AssertionError(f"{model} has no process")


def test_a_process_that_hangs_hides_no_other(router):
    with ThreadPoolExecutor(1) as pool:
        for name in NAMES:
            ask(router, name, "fine")
        waiting = pool.submit(ask, router, NAMES[0], "ask")
        (entry,) = pending(router, 1)
        pid = child_of(router, NAMES[1])
        os.kill(pid, signal.SIGSTOP)
        try:
            listed = router.get("/so8t/escalations")
            assert listed["silent"] == [NAMES[1]]
            assert entry["id"] in {e["id"] for e in listed["escalations"]}
            found = router.get("/so8t")["models"]
            assert found[NAMES[0]]["so8t"] and found[NAMES[1]] == {"status": "loaded", "so8t": None}
            unknown = router.request("POST", "/so8t/escalations/esc-none", {"action": "deny", "reviewer": "Ada"})
            assert unknown.status == 503 and NAMES[1] in unknown.json()["error"]["message"]
            decided = router.request("POST", f"/so8t/escalations/{entry['id']}?model={NAMES[0]}",
                                     {"action": "deny", "reviewer": "Ada"})  # fmt: skip
            assert decided.status == 200
        finally:
            os.kill(pid, signal.SIGCONT)
        assert waiting.result(timeout=30).so8t["enforced"] == "denied"
    assert router.get("/so8t/escalations")["silent"] == []


def test_a_model_with_a_held_answer_is_not_unloaded_for_another(runtime, models):
    flags = (*SMALL, *ENFORCE, "--models-max", "1")
    with (
        Server(runtime / "llama-server", "--models-dir", models, *flags) as small,
        ThreadPoolExecutor(2) as pool,
    ):
        held = pool.submit(ask, small, NAMES[0], "ask")
        (entry,) = pending(small, 1)
        other = pool.submit(ask, small, NAMES[1], "fine")
        time.sleep(2)
        assert not held.done() and not other.done()
        assert [e["status"] for e in small.get("/so8t/escalations")["escalations"]] == ["pending"]
        small.post(f"/so8t/escalations/{entry['id']}", {"action": "allow", "reviewer": "Ada"})
        assert held.result(timeout=60).so8t["enforced"] == "released"
        assert other.result(timeout=60).so8t["decision"] == "allow"


def test_a_key_of_the_environment_is_that_of_the_processes_too(runtime, models, monkeypatch):
    monkeypatch.setenv("LLAMA_API_KEY", KEY)
    with Server(runtime / "llama-server", "--models-dir", models, *SMALL, *ENFORCE) as server:
        assert server.request("GET", "/so8t").status == 401
        server.key = KEY
        assert ask(server, NAMES[0], "fine").so8t["decision"] == "allow"
        assert server.get("/so8t")["models"][NAMES[0]]["so8t"]["policy"]["mode"] == "enforce"
        assert server.get("/so8t/escalations")["silent"] == []


def test_keys_of_reviewers_reach_the_model(runtime, models, tmp_path):
    key = add_reviewer(tmp_path / "reviewers", "Ada")
    flags = (*SMALL, *ENFORCE, "--so8t-reviewers", tmp_path / "reviewers")
    with (
        Server(runtime / "llama-server", "--models-dir", models, *flags) as router,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(ask, router, NAMES[0], "ask")
        (entry,) = pending(router, 1)
        path, body = f"/so8t/escalations/{entry['id']}", {"action": "allow"}
        assert router.request("POST", path, body | {"reviewer": "Ada"}).status == 403
        reply = router.request("POST", path, body, {"X-So8t-Reviewer-Key": key})
        assert reply.status == 200 and reply.json()["reviewer"] == "Ada"
        assert waiting.result(timeout=30).so8t["escalation"]["id"] == entry["id"]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_clients_that_leave_and_come_back_reach_the_model(router, streamed):
    with client(router, "chat", streamed, key=KEY, model=NAMES[0]):
        (entry,) = pending(router, 1)
    wait_for(router, entry, status="gone")
    with client(router, "chat", streamed, key=KEY, model=NAMES[0]) as connection:
        wait_for(router, entry, status="pending", clients=1)
        decided = router.request("POST", f"/so8t/escalations/{entry['id']}", {"action": "deny", "reviewer": "Ada"})
        assert decided.status == 200
        assert REFUSAL in read(connection)
