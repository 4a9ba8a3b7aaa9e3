"""What the lines of an audit log say, field by field with its type."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from llama_so8t.audit.log import AuditError, Place

MAX_INTEGER = 2**63 - 1
"""What SQLite can store."""

_LARGEST_REAL = 2.0**128
"""float32, in which scales are."""

T = TypeVar("T")


class Event(str, Enum):
    """What a line tells; the same list as ``SO8T_AUDIT_*`` of csrc/audit/so8t-audit-chain.h."""

    OPEN = "open"
    """A run of the server begins."""
    REQUEST = "request"
    """A request was judged."""
    ESCALATION = "escalation"
    """A held answer was decided."""
    ADAPTERS = "adapters"
    """The scales of LoRA adapters were changed."""
    LOST = "lost"
    """Records were dropped while the log could not be written."""
    ROTATE = "rotate"
    """The log goes on in the next file."""
    CLOSE = "close"
    """A run of the server ends."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter of the model: the sha256 of its file, and by what it is multiplied; 0: it does nothing."""

    path: str
    sha256: str
    scale: float


@dataclass(frozen=True)
class HeadsFile:
    """A heads file beside the model: the sha256 of the file."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Open:
    """A run of the server begins."""

    architecture: str | None
    name: str | None
    model: str | None
    policy: str | None
    mode: str | None
    settings: dict[str, Any]
    dropped_bytes: int
    adapters: tuple[Adapter, ...]
    heads: dict[str, Any]
    """What is told of each head, by its name; empty in logs of older servers."""
    heads_files: tuple[HeadsFile, ...]


@dataclass(frozen=True)
class Text:
    """A prompt or an answer: its sizes, its HMAC-SHA256, and itself if the log keeps texts."""

    n_tokens: int
    n_bytes: int
    hmac: str
    text: str | None


@dataclass(frozen=True)
class Message:
    """A text as the client sent it: a message of a conversation or a part of one, or a raw prompt, without a role."""

    role: str | None
    n_bytes: int
    hmac: str


@dataclass(frozen=True)
class Verdict:
    """A head has this label from this position of a part on."""

    part: str
    position: int
    head: str
    label: str
    probabilities: dict[str, float | None]


@dataclass(frozen=True)
class Trigger:
    """The first label of a request that acted."""

    part: str
    position: int
    head: str
    label: str
    probability: float | None


@dataclass(frozen=True)
class Request:
    """A judged request.

    ``model`` and ``policy`` are hashes; ``escalation`` is the id of a held answer. ``cancelled``: the client went away
    or the server ended before the answer did. ``messages`` are in the order of the request; logs of older servers have
    none. ``verdicts_omitted`` counts the last verdicts, ``messages_omitted`` the first messages of a line that would
    have been too long with them. ``lora`` are adapters that the request has chosen itself: index and scale.
    """

    request: str
    task: int | None
    slot: int | None
    model: str | None
    policy: str | None
    mode: str | None
    messages: tuple[Message, ...]
    prompt: Text | None
    answer: Text | None
    verdicts: tuple[Verdict, ...]
    decision: str
    enforced: str
    triggered: Trigger | None
    escalation: str | None
    cancelled: bool
    verdicts_omitted: int
    messages_omitted: int
    lora: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class EditedText:
    """A text that a reviewer wrote in place of an answer; the text itself is there only if the server keeps texts."""

    n_bytes: int
    hmac: str
    text: str | None


@dataclass(frozen=True)
class Escalation:
    """What became of a held answer. ``text`` was delivered in its place, if ``status`` is "edited"."""

    escalation: str
    status: str
    reviewer: str | None
    comment: str | None
    text: EditedText | None


@dataclass(frozen=True)
class Adapters:
    """All adapters from here on, after some of their scales were changed."""

    adapters: tuple[Adapter, ...]


@dataclass(frozen=True)
class Lost:
    """There is nothing more of ``lines`` requests and decisions: the log could not be written."""

    lines: int


@dataclass(frozen=True)
class Bare:
    """A line of which only the event matters: "rotate", "close", or one that this version does not know."""

    event: str


Content = Open | Request | Escalation | Adapters | Lost | Bare
"""What a line says."""


def read_record(place: Place, record: dict[str, Any]) -> Content:
    """A line as what its event says.

    Raises:
        AuditError: a field is missing or of another type; names it.
    """
    fields = _Fields(place, "", record)
    match record["event"]:
        case Event.OPEN:
            return _open(fields)
        case Event.REQUEST:
            return _request(fields)
        case Event.ESCALATION:
            return _escalation(fields)
        case Event.ADAPTERS:
            return Adapters(fields.each("adapters", _adapter))
        case Event.LOST:
            return Lost(fields.count("lines"))
        case other:
            return Bare(other)


@dataclass(frozen=True)
class _Fields:
    """An object of a line. Where a field may be missing, ``null`` is as good."""

    place: Place
    prefix: str
    values: dict[str, Any]

    def text(self, name: str) -> str:
        return self._get(name, str, "a text")

    def optional_text(self, name: str) -> str | None:
        return self._optional(name, self.text)

    def integer(self, name: str) -> int:
        value = self._get(name, int, "a whole number")
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise self._error(name, f"at most {MAX_INTEGER}")
        return value

    def count(self, name: str) -> int:
        value = self.integer(name)
        if value < 0:
            raise self._error(name, "a whole number from 0 on")
        return value

    def optional_count(self, name: str) -> int | None:
        return self._optional(name, self.count)

    def optional_flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool | None):
            raise self._error(name, "true or false")
        return bool(value)

    def optional_integer(self, name: str) -> int | None:
        return self._optional(name, self.integer)

    def real(self, name: str) -> float:
        return float(self._get(name, (int, float), "a number", lambda value: abs(value) < _LARGEST_REAL))

    def number(self, name: str) -> float:
        return float(self._get(name, (int, float), "a number from 0 to 1", lambda value: 0 <= value <= 1))

    def optional_number(self, name: str) -> float | None:
        return self._optional(name, self.number)

    def fields(self, name: str) -> "_Fields":
        return _Fields(self.place, f"{self.prefix}{name}.", self._get(name, dict, "an object"))

    def optional(self, name: str, read: Callable[["_Fields"], T]) -> T | None:
        return self._optional(name, lambda name: read(self.fields(name)))

    def optional_each(self, name: str, read: Callable[["_Fields"], T]) -> tuple[T, ...]:
        return self._optional(name, lambda name: self.each(name, read)) or ()

    def each(self, name: str, read: Callable[["_Fields"], T]) -> tuple[T, ...]:
        items = self._get(name, list, "a list of objects", lambda items: all(isinstance(item, dict) for item in items))
        return tuple(read(_Fields(self.place, f"{self.prefix}{name}[{i}].", item)) for i, item in enumerate(items))

    def _optional(self, name: str, read: Callable[[str], T]) -> T | None:
        return None if self.values.get(name) is None else read(name)

    def _get(
        self,
        name: str,
        kind: type | tuple[type, ...],
        expected: str,
        is_right: Callable[[Any], bool] = lambda value: True,
    ) -> Any:
        value = self.values.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or not is_right(value):
            raise self._error(name, expected)
        return value

    def _error(self, name: str, expected: str) -> AuditError:
        found = repr(self.values[name])[:80] if name in self.values else "nothing"
        return AuditError(f"{self.place}: field {self.prefix}{name}: found {found}, expected {expected}")


def _open(fields: _Fields) -> Open:
    model, policy = fields.fields("model"), fields.fields("policy")
    return Open(
        architecture=model.optional_text("architecture"),
        name=model.optional_text("name"),
        model=model.optional_text("sha256"),
        policy=policy.optional_text("sha256"),
        mode=policy.optional_text("mode"),
        settings=policy.values,
        dropped_bytes=fields.optional_integer("dropped_bytes") or 0,
        adapters=model.optional_each("adapters", _adapter),
        heads=model.optional("heads", lambda heads: {name: heads.fields(name).values for name in heads.values}) or {},
        heads_files=model.optional_each(
            "heads_files", lambda file: HeadsFile(path=file.text("path"), sha256=file.text("sha256"))
        ),
    )


def _request(fields: _Fields) -> Request:
    return Request(
        request=fields.text("request"),
        task=fields.optional_integer("task"),
        slot=fields.optional_integer("slot"),
        model=fields.optional_text("model"),
        policy=fields.optional_text("policy"),
        mode=fields.optional_text("mode"),
        messages=fields.optional_each("messages", _message),
        prompt=fields.optional("prompt", _text),
        answer=fields.optional("answer", _text),
        verdicts=fields.each("verdicts", _verdict),
        decision=fields.text("decision"),
        enforced=fields.text("enforced"),
        triggered=fields.optional("triggered", _trigger),
        escalation=fields.optional_text("escalation"),
        cancelled=fields.optional_flag("cancelled"),
        verdicts_omitted=fields.optional_count("verdicts_omitted") or 0,
        messages_omitted=fields.optional_count("messages_omitted") or 0,
        lora=fields.optional_each("lora", lambda chosen: (chosen.count("id"), chosen.real("scale"))),
    )


def _escalation(fields: _Fields) -> Escalation:
    return Escalation(
        escalation=fields.text("escalation"),
        status=fields.text("status"),
        reviewer=fields.optional_text("reviewer"),
        comment=fields.optional_text("comment"),
        text=fields.optional("text", _edited_text),
    )


def _adapter(fields: _Fields) -> Adapter:
    return Adapter(fields.text("path"), fields.text("sha256"), fields.real("scale"))


def _edited_text(fields: _Fields) -> EditedText:
    return EditedText(fields.integer("n_bytes"), fields.text("hmac"), fields.optional_text("text"))


def _text(fields: _Fields) -> Text:
    return Text(
        fields.integer("n_tokens"), fields.integer("n_bytes"), fields.text("hmac"), fields.optional_text("text")
    )


def _message(fields: _Fields) -> Message:
    return Message(fields.optional_text("role"), fields.integer("n_bytes"), fields.text("hmac"))


def _verdict(fields: _Fields) -> Verdict:
    probabilities = fields.fields("probabilities")
    return Verdict(
        part=fields.text("part"),
        position=fields.integer("position"),
        head=fields.text("head"),
        label=fields.text("label"),
        probabilities={label: probabilities.optional_number(label) for label in probabilities.values},
    )


def _trigger(fields: _Fields) -> Trigger:
    return Trigger(
        part=fields.text("part"),
        position=fields.integer("position"),
        head=fields.text("head"),
        label=fields.text("label"),
        probability=fields.optional_number("probability"),
    )
