"""Writes audit logs by the format in docs/audit.md, without the code that reads them."""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

MODEL = hashlib.sha256(b"model").hexdigest()
POLICY = hashlib.sha256(b"policy").hexdigest()
KEY = bytes(range(32))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def line(seq: int, prev: str, event: str, /, **fields: Any) -> str:
    """A line without its newline."""
    head = {"seq": seq, "time": f"2026-11-24T05:{seq // 60 % 60:02}:{seq % 60:02}.{seq % 1000:03}Z", "event": event}
    text = json.dumps({**head, **fields, "prev": prev}, ensure_ascii=False, separators=(",", ":"))[:-1]
    return f'{text},"hash":"{digest(text)}"}}'


def hash_of(text: str) -> str:
    return json.loads(text)["hash"]


def chain(records: list[tuple[str, dict[str, Any]]], seq: int = 1, prev: str = "0" * 64) -> list[str]:
    """Lines of (event, fields)."""
    lines = []
    for event, fields in records:
        lines.append(line(seq, prev, event, **fields))
        seq, prev = seq + 1, hash_of(lines[-1])
    return lines


def text(value: str, keep: bool = False) -> dict[str, Any]:
    raw = value.encode()
    fields = {"n_tokens": len(value.split()), "n_bytes": len(raw), "hmac": hmac.digest(KEY, raw, "sha256").hex()}
    return fields | ({"text": value} if keep else {})


def message(role: str | None, value: str) -> dict[str, Any]:
    """A text of a client; None: a raw prompt has no role."""
    raw = value.encode()
    named = {"role": role} if role else {}
    return {**named, "n_bytes": len(raw), "hmac": hmac.digest(KEY, raw, "sha256").hex()}


def opening(model: str | None = MODEL, dropped: int = 0) -> tuple[str, dict[str, Any]]:
    policy = {"mode": "enforce", "think": "monitor", "holdback": 0, "heads": {}, "sha256": POLICY}
    named = {"architecture": "so8t", "name": "Tiny", "sha256": model}
    return "open", {"model": named, "policy": policy, "dropped_bytes": dropped}


def request(number: int, decision: str = "allow", keep: bool = False, **changed: Any) -> tuple[str, dict[str, Any]]:
    label = "UNSAFE" if decision == "refuse" else "SAFE"
    changes = [("prompt", 4, "SAFE"), ("answer", 0, "SAFE"), ("answer", 3, label)]
    verdicts = [
        {"part": part, "position": p, "head": "safety", "label": v, "probabilities": {"SAFE": None, "UNSAFE": 0.75}}
        for part, p, v in changes[: 3 if decision == "refuse" else 2]
    ]
    trigger = {"part": "answer", "position": 3, "head": "safety", "label": "UNSAFE", "probability": 0.75}
    return "request", {
        "request": f"chatcmpl-{number}",
        "task": number,
        "slot": number % 4,
        "model": MODEL,
        "policy": POLICY,
        "mode": "enforce",
        "prompt": text(f"prompt {number}", keep),
        "answer": text(f"answer {number}", keep),
        "verdicts": verdicts,
        "decision": decision,
        "enforced": "stop" if decision == "refuse" else "none",
        "triggered": trigger if decision == "refuse" else None,
    } | changed


def run(n: int) -> list[str]:
    """A log of ``n`` lines: open, requests, close."""
    return chain([opening(), *(request(i, ("allow", "allow", "refuse")[i % 3]) for i in range(n - 2)), ("close", {})])


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    path.write_text("\n".join(lines) + end if lines else "", encoding="utf-8", newline="")
    return path


def rotated(path: Path, sizes: list[int]) -> list[list[str]]:
    """Files of these numbers of lines; all but the last end in "rotate"."""
    records = []
    for i, size in enumerate(sizes):
        records += [request(100 * i + j) for j in range(size - 1)]
        records += [("rotate", {"next": path.name})] if i + 1 < len(sizes) else [("close", {})]
    records[0] = opening()
    lines = chain(records)
    files = []
    for i, size in enumerate(sizes):
        files.append(lines[:size])
        lines = lines[size:]
        write(path if i + 1 == len(sizes) else path.with_name(f"{path.name}.{i + 1}"), files[-1])
    return files


def note_text(name: str, seq: int, digest: str) -> str:
    return f"so8t-audit/{name}\n{seq}\n{base64.b64encode(bytes.fromhex(digest)).decode()}\n"


def signature_line(name: str, note: str, private_key) -> str:
    """Of an Ed25519 key of the package cryptography, as C2SP signed-note says."""
    public = private_key.public_key().public_bytes_raw()
    key_id = hashlib.sha256(f"so8t-audit/{name}\n".encode() + b"\x01" + public).digest()[:4]
    blob = base64.b64encode(key_id + private_key.sign(note.encode())).decode()
    return f"\u2014 so8t-audit/{name} {blob}\n"


def checkpoint(path: Path, name: str, text: str, private_key=None) -> Path:
    """A checkpoint of a line."""
    record = json.loads(text)
    note = note_text(name, record["seq"], record["hash"])
    signature = signature_line(name, note, private_key) if private_key else ""
    path.write_text(f"{note}\n{signature}", encoding="utf-8", newline="")
    return path
