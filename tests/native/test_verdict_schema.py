"""What llama-server and llama-completion give out is what docs/verdict.schema.json says."""

import json
import subprocess
import threading

import pytest
from verdict_schema import errors

from .guard_server import SMALL

ENFORCE = ("--so8t-policy", "enforce")
PROMPTS = ("fine", "go", "ask", "mix ", "undefined ", "muse")


def chat(prompt: str, **fields: object) -> dict:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": 12, **fields}


@pytest.mark.parametrize("flags", [(), ENFORCE], ids=["monitor", "enforce"])
def test_verdicts_of_answers(serve, guard_file, flags):
    server = serve(guard_file, *flags)
    for prompt in PROMPTS:
        reply = server.post("/v1/chat/completions", chat(prompt, so8t={"trace": True}))
        assert errors(reply["so8t"]) == [], prompt
        assert reply["so8t"]["trace"]
        last = [event for event in server.stream("/v1/chat/completions", chat(prompt)).events if "so8t" in event]
        assert [errors(event["so8t"]) for event in last] == [[]], prompt
        assert errors(server.post("/so8t/judge", {"messages": chat(prompt)["messages"]})["so8t"]) == [], prompt


def test_a_verdict_with_every_field(serve_here, guard_file, tmp_path):
    """A held answer with a think block, a line in the log and a trace."""
    flags = (*ENFORCE, "--so8t-escalation-wait", 60, "--so8t-audit", tmp_path / "audit.jsonl")
    server = serve_here(guard_file, *flags)
    replies = []
    body = chat("ask", so8t={"trace": True})
    client = threading.Thread(target=lambda: replies.append(server.post("/v1/chat/completions", body)))
    client.start()
    while not (held := server.get("/so8t/escalations")["escalations"]):
        assert client.is_alive(), replies
    server.post(f"/so8t/escalations/{held[0]['id']}", {"action": "allow", "reviewer": "R", "comment": ""})
    client.join()
    verdict = replies[0]["so8t"]
    assert errors(verdict) == []
    assert {"escalation", "audit", "trace"} <= set(verdict)


def test_lines_of_so8t_json(runtime, guard_file, tmp_path):
    lines = []
    for prompt in PROMPTS:
        file = tmp_path / "verdicts.jsonl"
        subprocess.run(
            [runtime / "llama-completion", "-m", guard_file, *SMALL, "-no-cnv", "-n", "12", "-p", prompt,
             "--so8t-json", file],
            check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip
        lines += file.read_text().splitlines()
    assert len(lines) == len(PROMPTS)
    assert [error for line in lines for error in errors(json.loads(line))] == []
