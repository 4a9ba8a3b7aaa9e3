"""Lines of an audit log as text for people; a hostile text cannot drive the terminal."""

import json
from collections.abc import Iterator
from typing import Any

from llama_so8t.audit.records import (
    Adapter,
    Adapters,
    Content,
    EditedText,
    Escalation,
    Lost,
    Message,
    Open,
    Request,
    Text,
    Verdict,
)

TEXT_SHOWN = 1000
"""Characters of a prompt or an answer; ``--json`` has them all."""


def printable(text: str) -> str:
    """The text on one line: control characters, line ends and marks of direction become escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def describe(record: dict, content: Content) -> str:
    """A record as one line, and one more, indented, for each verdict and text."""
    lines = [f"{record['seq']:>8}  {record['time']}  {record['event']}"]
    match content:
        case Open():
            lines[0] += f"  model {content.name or '-'} ({content.architecture or '-'}) {content.model or '-'}"
            lines[0] += f"  policy {content.mode or '-'} {content.policy or '-'}"
            lines += [f"head {name}  {_head(head)}" for name, head in content.heads.items()]
            lines += [f"heads file {file.path}  {file.sha256}" for file in content.heads_files]
            lines += map(_adapter, content.adapters)
            if content.dropped_bytes:
                lines.append(f"cut away {content.dropped_bytes} bytes of an unfinished line")
        case Request():
            lines[0] += f"  {content.request}  {content.decision}, enforced: {content.enforced}"
            lines[0] += ", cancelled" if content.cancelled else ""
            lines += _request(content)
        case Escalation():
            lines[0] += f"  {content.escalation}  {content.status}"
            lines[0] += f" by {content.reviewer}" if content.reviewer else ""
            lines += [f"comment: {_shortened(content.comment)}"] if content.comment else []
            lines += [f"text: {_edited(content.text)}"] if content.text else []
        case Adapters():
            lines += map(_adapter, content.adapters)
        case Lost():
            lines[0] += f"  {content.lines} lines"
    return "\n".join(printable(line) if i == 0 else f"          {printable(line)}" for i, line in enumerate(lines))


def _head(head: dict[str, Any]) -> str:
    """What a head reads and how positions are combined, as far as the server has said it."""
    names = ("form", "taps", "tap_norm", "link", "rule", "aggregation", "prompt_aggregation", "depends_on")
    return _shortened(", ".join(f"{name} {json.dumps(head[name])}" for name in names if head.get(name) is not None))


def _request(request: Request) -> Iterator[str]:
    if request.triggered:
        t = request.triggered
        yield f"triggered by {t.head}={t.label} at {t.part} {t.position}, probability {_probability(t.probability)}"
    if request.escalation:
        yield f"held as {request.escalation}"
    if request.lora:
        yield "adapters chosen by the request: " + ", ".join(f"{i} at scale {scale:g}" for i, scale in request.lora)
    yield from (_verdict(verdict) for verdict in request.verdicts)
    if request.verdicts_omitted:
        yield f"{request.verdicts_omitted} more verdicts were left out: the line would have been too long"
    if request.messages_omitted:
        yield f"{request.messages_omitted} messages before these were left out: the line would have been too long"
    yield from (f"messages[{i}]: {_message(message)}" for i, message in enumerate(request.messages))
    for name, text in (("prompt", request.prompt), ("answer", request.answer)):
        if text:
            yield f"{name}: {_text(text)}"


def _adapter(adapter: Adapter) -> str:
    return f"adapter {_shortened(adapter.path)}  {adapter.sha256}, scale {adapter.scale:g}"


def _verdict(verdict: Verdict) -> str:
    probability = verdict.probabilities.get(verdict.label)
    return f"{verdict.part} {verdict.position}: {verdict.head}={verdict.label} {_probability(probability)}"


def _message(message: Message) -> str:
    return f"{message.role or 'no role'}, {message.n_bytes} bytes, hmac {message.hmac}"


def _text(text: Text) -> str:
    size = f"{text.n_tokens} tokens, {text.n_bytes} bytes, hmac {text.hmac}"
    return size if text.text is None else f"{size}: {_shortened(text.text)}"


def _edited(text: EditedText) -> str:
    size = f"{text.n_bytes} bytes, hmac {text.hmac}"
    return size if text.text is None else f"{size}: {_shortened(text.text)}"


def _shortened(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else f"{text[:TEXT_SHOWN]}... ({len(text)} characters)"


def _probability(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
