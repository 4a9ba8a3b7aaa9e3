"""An audit log as a SQLite database, whose tables are those of `SCHEMA`."""

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from llama_so8t.audit.log import AuditError, Place
from llama_so8t.audit.records import (
    Adapter,
    Adapters,
    Bare,
    Content,
    Escalation,
    Event,
    Lost,
    Open,
    Request,
    Text,
    read_record,
)
from llama_so8t.files.atomic import new_file

SCHEMA = """
CREATE TABLE runs (
    run INTEGER PRIMARY KEY,            -- seq of its "open" line
    time TEXT NOT NULL,
    architecture TEXT, model_name TEXT, model_sha256 TEXT,
    mode TEXT, policy_sha256 TEXT,
    policy TEXT NOT NULL,               -- JSON
    dropped_bytes INTEGER NOT NULL,
    closed TEXT,                        -- time of its "close" line
    hash TEXT NOT NULL
);
CREATE TABLE heads_files (
    run INTEGER REFERENCES runs,
    number INTEGER NOT NULL,            -- index of the file, from 0
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,               -- of the file
    PRIMARY KEY (run, number)
) WITHOUT ROWID;
CREATE TABLE adapters (
    seq INTEGER NOT NULL,               -- of the line, "open" or "adapters", from which on this is so
    number INTEGER NOT NULL,            -- index of the adapter, from 0
    run INTEGER REFERENCES runs,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,               -- of the file
    scale REAL NOT NULL,
    PRIMARY KEY (seq, number)
) WITHOUT ROWID;
CREATE TABLE requests (
    seq INTEGER PRIMARY KEY,
    run INTEGER REFERENCES runs,
    time TEXT NOT NULL,
    request TEXT NOT NULL,
    task INTEGER, slot INTEGER,
    model_sha256 TEXT, policy_sha256 TEXT, mode TEXT,
    prompt_tokens INTEGER, prompt_bytes INTEGER, prompt_hmac TEXT, prompt TEXT,
    answer_tokens INTEGER, answer_bytes INTEGER, answer_hmac TEXT, answer TEXT,
    decision TEXT NOT NULL,
    enforced TEXT NOT NULL,
    triggered_part TEXT, triggered_position INTEGER, triggered_head TEXT, triggered_label TEXT,
    triggered_probability REAL,
    escalation TEXT,
    cancelled INTEGER NOT NULL,         -- 1: the client went away, or the server ended, before the answer did
    verdicts_omitted INTEGER NOT NULL,  -- of the last ones, for which the line had no room
    messages_omitted INTEGER NOT NULL,  -- of the first ones, likewise
    lora TEXT,                          -- JSON: index and scale of adapters that the request has chosen
    hash TEXT NOT NULL
);
CREATE TABLE messages (
    seq INTEGER NOT NULL REFERENCES requests,
    number INTEGER NOT NULL,            -- order in the line, from 0
    role TEXT,                          -- none: a raw prompt
    bytes INTEGER NOT NULL,
    hmac TEXT NOT NULL,
    PRIMARY KEY (seq, number)
) WITHOUT ROWID;
CREATE TABLE verdicts (
    seq INTEGER NOT NULL REFERENCES requests,
    number INTEGER NOT NULL,            -- order in the line, from 0
    part TEXT NOT NULL,
    position INTEGER NOT NULL,
    head TEXT NOT NULL,
    label TEXT NOT NULL,
    probability REAL,                   -- of this label
    probabilities TEXT NOT NULL,        -- JSON
    PRIMARY KEY (seq, number)
) WITHOUT ROWID;
CREATE TABLE escalations (
    seq INTEGER PRIMARY KEY,
    run INTEGER REFERENCES runs,
    time TEXT NOT NULL,
    escalation TEXT NOT NULL,
    status TEXT NOT NULL,
    reviewer TEXT,
    comment TEXT,
    text_bytes INTEGER,                 -- of a text in place of the answer
    text_hmac TEXT,
    text TEXT,                          -- if the server keeps texts
    hash TEXT NOT NULL
);
CREATE TABLE lost (
    seq INTEGER PRIMARY KEY,
    run INTEGER REFERENCES runs,
    time TEXT NOT NULL,
    lines INTEGER NOT NULL,             -- requests and decisions of which there is nothing more
    hash TEXT NOT NULL
);
"""

# made after the rows, which is faster
INDEXES = """
CREATE INDEX requests_time ON requests (time);
CREATE INDEX requests_decision ON requests (decision, enforced);
CREATE INDEX requests_model ON requests (model_sha256);
CREATE INDEX requests_prompt ON requests (prompt_hmac);
CREATE INDEX requests_answer ON requests (answer_hmac);
CREATE INDEX messages_hmac ON messages (hmac);
CREATE INDEX requests_escalation ON requests (escalation);
CREATE INDEX verdicts_label ON verdicts (head, label, part);
CREATE INDEX escalations_escalation ON escalations (escalation);
"""


def export(records: Iterable[tuple[Place, dict[str, Any]]], path: Path) -> dict[str, int]:
    """Writes the database; it appears complete under its name, in place of an older one, or not at all.

    Args:
        records: of whole lines.
        path: file to write.

    Returns:
        Rows by table.

    Raises:
        AuditError: a field is missing or of another type, a seq stands twice, another file has this name, or SQLite
            cannot write.
    """
    if path.exists() and path.open("rb").read(len(_MAGIC)) not in (_MAGIC, b""):
        raise AuditError(f"{path}: is no SQLite database, and stays as it is; name another file")
    try:
        # nobody sees the file before it is complete, so it needs no journal
        with new_file(path) as temporary, closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {SCHEMA}")
            connection.execute("BEGIN")
            writer = _Writer(connection)
            for place, record in records:
                try:
                    writer.add(record, read_record(place, record))
                except sqlite3.IntegrityError:
                    raise AuditError(
                        f"{place}: found seq {record['seq']} for a second time; see what so8t audit verify says"
                    ) from None
            connection.commit()
            connection.executescript(INDEXES)
            return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in _TABLES}
    except sqlite3.Error as error:
        raise AuditError(f"{path}: cannot be written: {error}") from None


_MAGIC = b"SQLite format 3\0"

_TABLES = ("runs", "heads_files", "adapters", "requests", "messages", "verdicts", "escalations", "lost")


class _Writer:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.run: int | None = None

    def add(self, record: dict[str, Any], content: Content) -> None:
        seq, time, digest = record["seq"], record["time"], record["hash"]
        match content:
            case Open():
                self.run = seq
                settings = json.dumps(content.settings)
                model = (content.architecture, content.name, content.model, content.mode, content.policy)
                self._insert("runs", seq, time, *model, settings, content.dropped_bytes, None, digest)
                for number, file in enumerate(content.heads_files):
                    self._insert("heads_files", seq, number, file.path, file.sha256)
                self._adapters(seq, content.adapters)
            case Adapters():
                self._adapters(seq, content.adapters)
            case Request():
                self._request(seq, time, content, digest)
            case Escalation():
                held = (content.escalation, content.status, content.reviewer, content.comment)
                text = content.text
                edited = (text.n_bytes, text.hmac, text.text) if text else (None,) * 3
                self._insert("escalations", seq, self.run, time, *held, *edited, digest)
            case Lost():
                self._insert("lost", seq, self.run, time, content.lines, digest)
            case Bare(Event.CLOSE):
                self.connection.execute("UPDATE runs SET closed = ? WHERE run = ?", (time, self.run))

    def _adapters(self, seq: int, adapters: tuple[Adapter, ...]) -> None:
        for number, adapter in enumerate(adapters):
            self._insert("adapters", seq, number, self.run, adapter.path, adapter.sha256, adapter.scale)

    def _request(self, seq: int, time: str, request: Request, digest: str) -> None:
        t = request.triggered
        self._insert(
            "requests",
            *(seq, self.run, time, request.request, request.task, request.slot),
            *(request.model, request.policy, request.mode),
            *_text(request.prompt),
            *_text(request.answer),
            *(request.decision, request.enforced),
            *((t.part, t.position, t.head, t.label, t.probability) if t else (None,) * 5),
            *(request.escalation, request.cancelled, request.verdicts_omitted, request.messages_omitted),
            *(json.dumps(request.lora) if request.lora else None, digest),
        )
        for number, message in enumerate(request.messages):
            self._insert("messages", seq, number, message.role, message.n_bytes, message.hmac)
        for number, v in enumerate(request.verdicts):
            probability, probabilities = v.probabilities.get(v.label), json.dumps(v.probabilities)
            self._insert("verdicts", seq, number, v.part, v.position, v.head, v.label, probability, probabilities)

    def _insert(self, table: str, *values: Any) -> None:
        # half a surrogate pair is legal in JSON, and no text for SQLite
        row = [v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for v in values]
        self.connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _text(text: Text | None) -> tuple[Any, ...]:
    return (text.n_tokens, text.n_bytes, text.hmac, text.text) if text else (None,) * 4
