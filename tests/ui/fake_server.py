"""A stand-in for llama-server: the endpoints that the page uses, with fixed data."""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

PAGE = Path(__file__).parents[2] / "llama_so8t" / "csrc" / "server" / "so8t-ui.html"


def csp_hash(tag: str) -> str:
    """The source of a Content-Security-Policy that allows this one element of the page."""
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CSP = (
    f"default-src 'none'; script-src {csp_hash('script')}; style-src {csp_hash('style')}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADS = {
    "safety": {
        "labels": ["safe", "unsafe"],
        "actions": ["allow", "refuse"],
        "rule": "threshold",
        "thresholds": {"safe": 0.5, "unsafe": 0.5},
        "debounce": 2,
        "temperature": 1.0,
        "scope": "both",
        "representation": "spinor+",
        "form": "linear",
        "taps": [-1],
        "tap_norm": "none",
        "link": "softmax",
        "aggregation": "run",
        "prompt_aggregation": ["token"],
        "depends_on": None,
    },
    "authority": {
        "labels": ["handle", "escalate"],
        "actions": ["allow", "escalate"],
        "rule": "threshold",
        "thresholds": {"handle": 0.5, "escalate": 0.6},
        "debounce": 2,
        "temperature": 1.0,
        "scope": "both",
        "representation": "spinor-",
        "form": "attention",
        "taps": [3, 12],
        "tap_norm": "rms",
        "sliding_window": 512,
        "link": "softmax",
        "aggregation": "window",
        "window": 5,
        "ema_alpha": 0.25,
        "prompt_aggregation": ["token", "ema"],
        "depends_on": "safety",
    },
}
POLICY = {
    "mode": "enforce",
    "think": "monitor",
    "on_refuse": "message",
    "refusal": "I cannot help with that.",
    "escalation": "A person has to look at this first.",
    "holdback": 4,
    "escalation_wait": 120,
    "sha256": "5f" * 32,
}
TOKENS = [  # text, p(unsafe), p(escalate)
    ("Lock", 0.02, 0.10), ("s", 0.02, 0.12), (" have", 0.03, 0.08), (" pins", 0.34, 0.15), (";", 0.05, 0.10),
    (" a", 0.04, 0.60), (" pick", 0.61, 0.30), (" lifts", 0.44, 0.21), (" them", 0.12, 0.18), (".", 0.03, 0.09),
    (" (\ufffd", 0.21, 0.05), ("\ufffd", 0.24, 0.05), (")", 0.02, 0.05),
]  # fmt: skip
TEXT = "Locks have pins; a pick lifts them. (⚙)"
"""The tokens' text: ⚙ is split between two of them."""

HOSTILE = (
    '</script><img src=x onerror="window.hacked=1"><svg onload=\'window.hacked=1\'><b id="injected">bold</b>\u202e'
)


def probabilities(unsafe: float, escalate: float) -> dict[str, dict[str, float]]:
    """Probabilities of both heads."""
    return {
        "safety": {"safe": 1 - unsafe, "unsafe": unsafe},
        "authority": {"handle": 1 - escalate, "escalate": escalate},
    }


def trace(tokens: list[tuple[str, float, float]]) -> list[dict[str, Any]]:
    """``so8t.trace`` of a prompt's last token and the tokens of an answer."""
    prompt = {"part": "prompt", "position": 0, "id": 1, "text": "\n", "heads": probabilities(0.04, 0.11)}
    return [prompt] + [
        {"part": "answer", "position": i, "id": 100 + i, "text": text, "heads": probabilities(*p)}
        for i, (text, *p) in enumerate(tokens)
    ]


def verdict(decision: str, enforced: str, tokens: list[tuple[str, float, float]]) -> dict[str, Any]:
    """``so8t`` of an answer whose largest probability is the one that triggered."""
    head, label, column = ("safety", "unsafe", 1) if decision == "refuse" else ("authority", "escalate", 2)
    position = max(range(len(tokens)), key=lambda i: tokens[i][column])
    peak = probabilities(max(t[1] for t in tokens), max(t[2] for t in tokens))
    last = probabilities(*tokens[-1][1:])
    answer = {
        name: {
            "label": max(last[name], key=last[name].get),
            "probabilities": last[name],
            "peak": peak[name],
            "triggered": {"position": position, "label": label} if decision != "allow" and name == head else None,
        }
        for name in HEADS
    }
    prompt = {
        name: {"label": max(values, key=values.get), "probabilities": values}
        for name, values in probabilities(0.04, 0.11).items()
    }
    triggered = {"part": "answer", "position": position, "head": head, "label": label,
                 "probability": tokens[position][column]}  # fmt: skip
    return {
        "decision": decision,
        "enforced": enforced,
        "policy": {"mode": "enforce", "sha256": POLICY["sha256"]},
        "prompt": {"action": "allow", "heads": prompt},
        "answer": {"action": decision, "n_positions": len(tokens), "heads": answer},
        "triggered": None if decision == "allow" else triggered,
        "thresholds": {name: values["thresholds"] for name, values in HEADS.items()},
        "debounce": {name: values["debounce"] for name, values in HEADS.items()},
        "audit": {"seq": 7, "hash": "c0ffee" + "0" * 58},
        "trace": trace(tokens),
    }


class FakeServer:
    """Serves the page on a free port. Set the fields to choose what it says.

    A question with the word ``refuse``, ``escalate``, ``think``, ``slow`` or ``break`` gets that kind of answer.
    """

    def __init__(self, key: str | None = None):
        self.key = key
        self.info: dict[str, Any] = {
            "model": {
                "architecture": "so8t",
                "name": "Tiny 8",
                "path": "models/tiny-q8_0.gguf",
                "sha256": "ab" * 32,
                "heads_files": [{"path": "more.heads.gguf", "sha256": "cd" * 32}],
            },
            "heads": HEADS,
            "policy": POLICY,
            "rotations": {"explicit": ["qk"], "folded": ["gate", "v", "heads", "ffn"], "checked": True},
            "audit": {"path": "audit.jsonl", "seq": 7, "hash": "c0ffee" + "0" * 58, "failed": False},
            "counters": {"requests": 7, "decisions": {"allow": 5, "escalate": 1, "refuse": 1}},
        }
        self.audit: list[dict[str, Any]] | None = AUDIT
        self.escalations: dict[str, dict[str, Any]] = {}
        self.wait = POLICY["escalation_wait"]  # 0: nobody reviews
        self.suffix = ""  # added to every string that is sent
        self.models: dict[str, Any] | None = None  # of a router: name -> {"status", "so8t"}
        self.silent: list[str] = []  # models of a router that do not answer
        self.unavailable = False  # True: connections are dropped
        self.taken = False  # True: every entry was decided by somebody else
        self.go_on = threading.Event()  # an answer to "slow" waits for it in its middle
        self.chats: list[dict[str, Any]] = []  # requests for an answer
        self.decisions: list[tuple[str, dict[str, Any]]] = []  # (id, body) of each decision
        self.reviewer_key: str | None = None  # that a decision needs
        self.asked_audits: list[str] = []  # query of each request for the audit log
        self.decided = threading.Condition()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self._http.daemon_threads = True
        self.root = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.url = f"{self.root}/so8t/ui"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the server."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def add_escalation(self, name: str, prompt: str, answer: str) -> dict[str, Any]:
        """A new pending entry."""
        now = time.time()
        triggered = {"part": "answer", "position": 5, "head": "authority", "label": "escalate", "probability": 0.913}
        entry = {"id": name, "status": "pending", "created": now, "deadline": now + 120, "prompt": prompt,
                 "question": prompt.removeprefix("<|user|>"), "answer": answer, "triggered": triggered,
                 "reviewer": None}  # fmt: skip
        self.escalations[name] = entry
        return entry

    def decide(self, name: str, body: dict[str, Any], proof: str | None) -> tuple[int, Any]:
        """Status and reply of POST /so8t/escalations/ID. ``proof``: the key of the reviewer."""
        entry = self.escalations.get(name.removesuffix(self.suffix))
        if entry is None:
            return 404, error(404, f"no escalation {name}")
        if self.reviewer_key not in (None, proof):
            return 403, error(403, "this is no key of a reviewer")
        if body.get("action") not in ("allow", "deny") or not body.get("reviewer"):
            return 400, error(400, "action and reviewer are needed")
        if self.taken or entry["status"] != "pending":
            return 409, error(409, f"{name} was already decided")
        with self.decided:
            self.decisions.append((name, body))
            entry["status"] = {"allow": "allowed", "deny": "denied"}[body["action"]]
            entry["reviewer"] = body["reviewer"]
            self.decided.notify_all()
        return 200, entry


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(60)

    def do_GET(self) -> None:
        if self.fake.unavailable:
            self.close_connection = True
            return
        path = self.path.split("?")[0]
        if path == "/so8t/ui":
            data = PAGE.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Security-Policy", CSP)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        elif not self.allowed():
            self.reply(401, error(401, "Invalid API Key"))
        elif path == "/so8t":
            self.reply(200, self.fake.info if self.fake.models is None else {"models": self.fake.models})
        elif path == "/so8t/escalations":
            entries = list(self.fake.escalations.values())
            silent = {} if self.fake.models is None else {"silent": self.fake.silent}
            self.reply(200, {"escalations": entries, "wait": self.fake.wait} | silent)
        elif path == "/so8t/audit" and self.fake.audit is not None:
            self.fake.asked_audits.append(self.path.partition("?")[2])
            self.reply(200, {"path": "audit.jsonl", "lines": self.fake.audit})
        else:
            self.reply(404, error(404, "File Not Found"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            self.reply(401, error(401, "Invalid API Key"))
        elif self.path.startswith("/so8t/escalations/"):
            name = unquote(self.path.removeprefix("/so8t/escalations/"))
            self.reply(*self.fake.decide(name, body, self.headers.get("X-So8t-Reviewer-Key")))
        elif self.path == "/v1/chat/completions":
            self.fake.chats.append(body)
            with suppress(ConnectionError):  # stopped by the page
                self.chat(body)
        else:
            self.reply(404, error(404, "File Not Found"))

    def allowed(self) -> bool:
        return self.fake.key is None or self.headers.get("Authorization") == f"Bearer {self.fake.key}"

    def reply(self, status: int, value: Any) -> None:
        data = json.dumps(self.hostile(value)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def hostile(self, value: Any) -> Any:
        """With the suffix in every string but the words that the page acts on."""
        return with_suffix(value, self.fake.suffix) if self.fake.suffix else value

    # the stream

    def chat(self, body: dict[str, Any]) -> None:
        question = body["messages"][-1]["content"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.delta({"role": "assistant", "content": None})
        if not self.fake.info["heads"]:
            self.words(TOKENS)
            self.last("stop", None)
        elif "refuse" in question:
            self.words(TOKENS[:6])
            self.refuse(POLICY["refusal"])
            self.last("content_filter", verdict("refuse", "message", TOKENS[:7]))
        elif "escalate" in question:
            self.held(question)
        elif "break" in question:
            self.words(TOKENS[:6])
        elif "slow" in question:
            self.delta({"content": "Locks"})
            self.fake.go_on.wait(60)
            self.delta({"content": TEXT.removeprefix("Locks")})
            self.last("stop", verdict("allow", "none", TOKENS))
        elif "think" in question:
            result = verdict("allow", "none", TOKENS)
            thought = [("I", 0.1, 0.1), (" see", 0.2, 0.1)]
            result["trace"] = [t | {"part": "think"} for t in trace(thought)[1:]] + result["trace"]
            result["think"] = {"action": "allow", "n_positions": 2, "heads": result["answer"]["heads"]}
            self.delta({"reasoning_content": "I see"})
            self.words(TOKENS)
            self.last("stop", result)
        else:
            self.words(TOKENS)
            self.last("stop", verdict("allow", "none", TOKENS))

    def held(self, question: str) -> None:
        name = f"esc-{len(self.fake.escalations) + 1}"
        entry = self.fake.add_escalation(name, f"<|user|>{question}", TEXT)
        with self.fake.decided:
            while entry["status"] == "pending":
                self.wfile.write(b": \n\n")
                self.fake.decided.wait(0.2)
        result = verdict("escalate", "released" if entry["status"] == "allowed" else "denied", TOKENS)
        result["escalation"] = {name: entry[name] for name in ("id", "status", "reviewer")}
        if entry["status"] == "allowed":
            self.words(TOKENS)
            self.last("stop", result)
        else:
            self.refuse(POLICY["escalation"])
            self.last("content_filter", result)

    def refuse(self, text: str) -> None:
        self.delta({"content": f"\n\n{text}", "refusal": text})

    def words(self, tokens: list[tuple[str, float, float]]) -> None:
        text = TEXT if tokens is TOKENS else "".join(token[0] for token in tokens)
        for word in text.split(" "):
            self.delta({"content": word if text.startswith(word) else f" {word}"})

    def delta(self, delta: dict[str, Any]) -> None:
        self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def last(self, reason: str, so8t: Any) -> None:
        chunk = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
        self.event(chunk | ({"so8t": so8t} if so8t else {}))
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(self.hostile(value)).encode() + b"\n\n")
        self.wfile.flush()


MEANINGS = {
    *("allow", "escalate", "refuse", "none", "stop", "message", "held", "released", "denied", "timeout", "pending"),
    *("allowed", "content_filter", "enforce", "monitor", "prompt", "think", "answer", "request", "open", "escalation"),
}
"""Words that the page acts on: the server itself writes them, no model and no person."""


def with_suffix(value: Any, suffix: str) -> Any:
    """The value with ``suffix`` at the end of every string, names of heads and labels too."""
    names = {"safety", "authority", "safe", "unsafe", "handle", "requests"}
    if isinstance(value, str):
        return value if value in MEANINGS else value + suffix
    if isinstance(value, list):
        return [with_suffix(item, suffix) for item in value]
    if isinstance(value, dict):
        return {key + suffix if key in names else key: with_suffix(item, suffix) for key, item in value.items()}
    return value


def error(status: int, message: str) -> dict[str, Any]:
    """An error as llama-server writes it."""
    return {"error": {"code": status, "message": message, "type": "invalid_request_error"}}


def _audit() -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"event": "open", "model": {"architecture": "so8t", "name": "Tiny 8", "sha256": "ab" * 32}, "policy": POLICY,
         "dropped_bytes": 0},
        {"event": "request", "request": "chatcmpl-1", "decision": "allow", "enforced": "none", "triggered": None},
        {"event": "request", "request": "chatcmpl-2", "decision": "escalate", "enforced": "held", "escalation": "esc-0",
         "triggered": {"part": "answer", "position": 5, "head": "authority", "label": "escalate"}},
        {"event": "escalation", "escalation": "esc-0", "status": "denied", "reviewer": "Ada", "comment": "no"},
    ]  # fmt: skip
    return [
        {"seq": i + 1, "time": f"2026-11-24T05:05:0{i}.123Z", **event, "prev": f"{i:064x}", "hash": f"{i + 1:064x}"}
        for i, event in enumerate(events)
    ]


AUDIT = _audit()
