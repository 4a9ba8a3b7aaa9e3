"""Clients of held answers that leave, repeat their request and come back: one answer, one decision, one line each."""

import http.client
import json
import os
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from .guard_rules import ESCALATION, REFUSAL, Policy
from .guard_server import CHAT, COMPLETION, ENDPOINTS, SCRIPTS, SMALL, Server
from .test_guard_escalations import ask, decide, pending

POLICY = Policy(mode="enforce", holdback=1)
HOLD = (*POLICY.flags, "--so8t-escalation-wait", 600)
GRACE = 2
WHOLE = "".join(SCRIPTS["ask"])
BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
EACH = pytest.mark.parametrize("name", ENDPOINTS)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("held") / "audit.jsonl"


@pytest.fixture(scope="module")
def server(runtime, guard_file, log):
    flags = ("--so8t-escalation-grace", GRACE, "--so8t-audit", log, "--metrics", "-np", 2)
    with Server(runtime / "llama-server", "-m", guard_file, *SMALL, *HOLD, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


@contextmanager
def client(server, name, streamed, key=None, **options):
    """A client that waits, and leaves at the end of the block. Its request has the bytes of that of `ask`."""
    endpoint = ENDPOINTS[name]
    body = json.dumps(endpoint.body("ask") | options | ({"stream": True} if streamed else {})).encode()
    lines = [f"POST {endpoint.path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/json"] + ([f"Authorization: Bearer {key}"] if key else [])
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        yield connection


def read(connection):
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.read().decode()


def entry_of(server, entry):
    return next(e for e in server.get("/so8t/escalations")["escalations"] if e["id"] == entry["id"])


def wait_for(server, entry, **fields):
    """The entry, as soon as it has these fields."""
    for _ in range(600):
        found = entry_of(server, entry)
        if fields.items() <= found.items():
            return found
        time.sleep(0.02)
    raise AssertionError(f"expected {fields}, found {found}")


def lines_of(log, entry):
    """What the log says of a held answer: the lines of its request and of its decision."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["event"], line.get("status", line.get("enforced"))) for line in lines
            if line.get("escalation") == entry["id"]]  # fmt: skip


def counted(server, status):
    text = server.request("GET", "/metrics").body.decode()
    found = [
        line for line in text.splitlines() if line.startswith(f'llamacpp:so8t_escalations_total{{status="{status}"}}')
    ]
    return int(found[0].split()[-1]) if found else 0


# ---- clients that leave ----


@BOTH
@EACH
def test_a_client_that_went_away_frees_its_answer(server, log, name, streamed):
    n_before = counted(server, "cancelled")
    with client(server, name, streamed):
        (entry,) = pending(server)
        assert entry["clients"] == 1 and entry["sent"] == ("may " if streamed else "")
    reply = decide(server, entry, "allow")
    assert reply.status == 410 and "went away" in reply.json()["error"]["message"]
    gone = entry_of(server, entry)
    assert (gone["status"], gone["clients"], gone["reviewer"]) == ("gone", 0, None)
    assert lines_of(log, entry) == [("request", "held")], "it may come back"
    wait_for(server, entry, status="cancelled", remaining=None)
    late = decide(server, entry, "deny")
    assert late.status == 410 and "did not come back" in late.json()["error"]["message"]
    assert lines_of(log, entry) == [("request", "held"), ("escalation", "cancelled")]
    assert counted(server, "cancelled") == n_before + 1
    assert ask("chat", server, False, "fine").text == "all is well here"


def test_a_client_that_left_before_the_server_ends_is_cancelled(runtime, guard_file, tmp_path):
    log = tmp_path / "audit.jsonl"
    flags = (*SMALL, *HOLD, "--so8t-escalation-grace", 60, "--so8t-audit", log)
    with Server(runtime / "llama-server", "-m", guard_file, *flags) as server:
        with client(server, "chat", False):
            (entry,) = pending(server)
        wait_for(server, entry, status="gone")
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0
    assert lines_of(log, entry) == [("request", "held"), ("escalation", "cancelled")]


def test_a_client_of_a_sleeping_server_is_seen_to_leave(runtime, guard_file):
    """The queue of its tasks does nothing meanwhile."""
    flags = (*SMALL, *HOLD, "--so8t-escalation-grace", 0, "--sleep-idle-seconds", 1)
    with Server(runtime / "llama-server", "-m", guard_file, *flags) as server:
        with client(server, "chat", True):
            (entry,) = pending(server)
            server.wait_for(lambda: server.get("/props")["is_sleeping"])
        wait_for(server, entry, status="cancelled")
        assert server.get("/props")["is_sleeping"]


# ---- clients that repeat their request ----


@BOTH
@EACH
@pytest.mark.parametrize("action", ["allow", "deny"])
def test_a_client_that_repeats_its_request_joins_its_answer(server, log, pool, name, streamed, action):
    with client(server, name, streamed):
        (entry,) = pending(server)
    wait_for(server, entry, status="gone")
    with client(server, name, streamed):  # runs out of patience once more
        wait_for(server, entry, status="pending", clients=1)
    wait_for(server, entry, status="gone")
    waiting = pool.submit(ask, name, server, streamed)
    wait_for(server, entry, status="pending", clients=1)
    assert decide(server, entry, action).status == 200
    answer = waiting.result(timeout=30)
    between = "\n\n" if name in ("completion", "text", "chat") else ""
    begun = f"may {between}" if streamed else ""
    assert answer.text == (WHOLE if action == "allow" else begun + REFUSAL)
    assert answer.so8t["escalation"]["id"] == entry["id"]
    status = {"allow": "allowed", "deny": "denied"}[action]
    assert lines_of(log, entry) == [("request", "held"), ("escalation", status)]
    assert [e for e in server.get("/so8t/escalations")["escalations"] if e["remaining"] is not None] == []


@BOTH
def test_a_repeat_while_the_first_client_waits_is_answered_as_well(server, log, pool, streamed):
    waiting = [pool.submit(ask, "chat", server, streamed)]
    (entry,) = pending(server)
    waiting += [pool.submit(ask, "chat", server, streamed) for _ in range(3)]
    wait_for(server, entry, clients=4)
    assert pending(server) == [entry_of(server, entry)]
    assert decide(server, entry, "allow").status == 200
    answers = [client.result(timeout=30) for client in waiting]
    assert [answer.text for answer in answers] == [WHOLE] * 4
    assert {answer.so8t["escalation"]["id"] for answer in answers} == {entry["id"]}
    assert {json.dumps(answer.so8t, sort_keys=True) for answer in answers} == {
        json.dumps(answers[0].so8t, sort_keys=True)
    }
    assert lines_of(log, entry) == [("request", "held"), ("escalation", "allowed")]


def test_the_first_of_two_clients_may_leave(server, pool):
    with client(server, "chat", True):
        (entry,) = pending(server)
        waiting = pool.submit(ask, "chat", server, True)
        wait_for(server, entry, clients=2)
    assert wait_for(server, entry, clients=1)["status"] == "pending"
    assert decide(server, entry, "allow").status == 200
    assert waiting.result(timeout=30).text == WHOLE


def test_a_request_after_the_decision_is_a_new_one(server, pool):
    first = pool.submit(ask, "chat", server, False)
    (entry,) = pending(server)
    decide(server, entry, "deny")
    assert first.result(timeout=30).text == REFUSAL
    second = pool.submit(ask, "chat", server, False)
    (other,) = pending(server)
    assert other["id"] != entry["id"]
    decide(server, other, "allow")
    assert second.result(timeout=30).text == WHOLE


@pytest.mark.parametrize(
    ("name", "streamed", "options"),
    [("chat", True, {}), ("text", False, {}), ("completion", False, {}), ("chat", False, {"seed": 1}),
     ("chat", False, {"user": "b"}), ("chat", False, {"n": 2})],
    ids=["stream", "endpoint", "path", "seed", "user", "choices"],
)  # fmt: skip
def test_another_request_gets_an_answer_of_its_own(server, pool, name, streamed, options):
    first = pool.submit(ask, "chat", server, False)
    (entry,) = pending(server)
    n = options.get("n", 1)
    second = pool.submit(ask, name, server, streamed, **options)
    entries = pending(server, 1 + n)
    assert entry_of(server, entry)["clients"] == 1
    for e in entries:
        decide(server, e, "deny" if e["id"] == entry["id"] else "allow")
    assert first.result(timeout=30).text == REFUSAL
    assert second.result(timeout=30).text == WHOLE


def test_another_client_cannot_get_at_an_answer(runtime, guard_file, pool):
    """Not by the same bytes: it has another key."""
    with Server(runtime / "llama-server", "-m", guard_file, *SMALL, *HOLD, key="one,two") as server:
        server.key = "one"
        with client(server, "chat", False, key="one"):
            (entry,) = pending(server)
            with client(server, "chat", False, key="two"):
                assert len(pending(server, 2)) == 2
                assert entry_of(server, entry)["clients"] == 1
            with client(server, "chat", False, key="one"):
                wait_for(server, entry, clients=2)


def test_prompts_of_one_request_are_joined_one_by_one(server, pool):
    body = {"prompt": ["ask", "fine", "ask"]}
    with client(server, "text", False, **body):
        first, second = pending(server, 2)
    wait_for(server, first, status="gone"), wait_for(server, second, status="gone")
    waiting = pool.submit(server.post, "/v1/completions", {"prompt": "ask"} | body)
    wait_for(server, first, clients=1), wait_for(server, second, clients=1)
    decide(server, first, "allow"), decide(server, second, "deny")
    texts = [choice["text"] for choice in waiting.result(timeout=30)["choices"]]
    assert texts == [WHOLE, "all is well here", REFUSAL] or texts == [REFUSAL, "all is well here", WHOLE]


def test_a_repeat_of_what_is_still_generated_begins_another_answer(server, pool):
    """Equal requests at one time are samples, and each is one."""
    body = {"n_predict": 300, "prompt": "tick"}
    replies = list(pool.map(lambda _: server.post("/completion", body), range(3)))
    assert len({reply["so8t"]["audit"]["seq"] for reply in replies}) == 3
    assert len({reply["content"] for reply in replies}) == 1


# ---- time ----


def test_a_wait_may_be_a_fraction_of_a_second(serve, guard_file):
    server = serve(guard_file, *POLICY.flags, "--so8t-escalation-wait", "1.3")
    started = time.monotonic()
    answer = CHAT.ask(server, "ask")
    assert time.monotonic() - started >= 1.3
    assert answer.text == f"{ESCALATION} (No reviewer decided within 1.3 s.)"
    (entry,) = server.get("/so8t/escalations")["escalations"]
    assert entry["deadline"] - entry["created"] == pytest.approx(1.3)
    assert server.get("/so8t/escalations")["wait"] == server.get("/so8t")["policy"]["escalation_wait"] == 1.3


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

static long step(void) { return access(STEPPED, F_OK) == 0 ? 3600 * (HOURS) : 0; }

int clock_gettime(clockid_t id, struct timespec * ts) {
    static int (*real)(clockid_t, struct timespec *);
    real = real ? real : dlsym(RTLD_NEXT, "clock_gettime");
    const int result = real(id, ts);
    ts->tv_sec += id == CLOCK_REALTIME ? step() : 0;
    return result;
}

time_t time(time_t * t) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (t) *t = ts.tv_sec;
    return ts.tv_sec;
}
"""


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_step_of_the_wall_clock_changes_no_wait(runtime, guard_file, tmp_path, pool, hours):
    """The clock of the machine is set while an answer is held: it neither ends at once nor an hour later."""
    (tmp_path / "clock.c").write_text(CLOCK)
    library, stepped = tmp_path / "clock.so", tmp_path / "stepped"
    defines = [f'-DSTEPPED="{stepped}"', f"-DHOURS={hours}"]
    subprocess.run(["cc", "-shared", "-fPIC", *defines, "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    flags = (*SMALL, *POLICY.flags, "--so8t-escalation-wait", 5)
    with Server(
        runtime / "llama-server", "-m", guard_file, *flags, environment=os.environ | {"LD_PRELOAD": str(library)}
    ) as server:
        waiting = pool.submit(ask, "chat", server, False)
        (entry,) = pending(server)
        stepped.touch()
        for _ in range(10):
            now = entry_of(server, entry)
            assert now["status"] == "pending" and 0 < now["remaining"] <= 5
            time.sleep(0.1)
        answer = waiting.result(timeout=120)
        assert answer.so8t["enforced"] == "timeout"
        other = pool.submit(ask, "chat", server, False)
        (later,) = pending(server)
        assert later["created"] - entry["created"] == pytest.approx(hours * 3600, abs=300), "the clock was set"
        decide(server, later, "deny")
        other.result(timeout=30)


# ---- comments of streams ----


def comments(server, seconds, name="chat", **options):
    """Comment lines of a stream that is held for so long."""
    with client(server, name, True, **options) as connection:
        (entry,) = pending(server)
        time.sleep(seconds)
        decide(server, entry, "allow")
        return sum(line.startswith(":") for line in read(connection).splitlines())


def test_a_held_stream_gets_comments_every_few_seconds(serve, guard_file):
    server = serve(guard_file, *HOLD, "-np", 2)
    assert comments(server, 7) >= 1


@pytest.mark.parametrize(
    ("flags", "options"),
    [(("--so8t-escalation-ping", 0, "--sse-ping-interval", 1), {}), (("--sse-ping-interval", -1), {}),
     (("--so8t-escalation-ping", 1), {"sse_ping_interval": -1})],
    ids=["held", "all", "request"],
)  # fmt: skip
def test_comments_can_be_switched_off(serve, guard_file, flags, options):
    """azure-ai-openai ends a stream at any comment line."""
    assert comments(serve(guard_file, *HOLD, *flags), 4, **options) == 0


def test_a_held_stream_gets_comments_while_others_are_answered(serve, guard_file, pool):
    """Results of others arrive all the time."""
    server = serve(guard_file, *HOLD, "-np", 2, "--so8t-escalation-ping", 1)
    seen = threading.Event()

    def keep_busy():
        while not seen.is_set():
            server.stream("/completion", COMPLETION.body("tick") | {"n_predict": 500})

    busy = pool.submit(keep_busy)
    try:
        with client(server, "chat", True) as connection:
            pending(server)
            lines = iter(connection.makefile("rb").readline, b"")
            comments = (line for line in lines if line.startswith(b":"))
            assert next(comments) and next(comments), "before the connection times out"
    finally:
        seen.set()
    busy.result(timeout=60)
