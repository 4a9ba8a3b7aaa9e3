"""Every way to tamper with a log is found, named and placed; seeds choose where."""

import json
import os
import random
from pathlib import Path

import audit_writer as w
import pytest

from llama_so8t.audit import AuditError, Log, chain, verify
from llama_so8t.audit.verification import NO_CHECKPOINT

N = 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def found(path: Path, lines: list[str], end: str = "\n") -> list[tuple]:
    """(kind, line, seq) of every finding."""
    report = verify(w.write(path, lines, end))
    assert report.ok == (not report.findings)
    for finding in report.findings:
        assert finding.place is None or str(finding.place) in finding.message or finding.kind in ("swapped", "removed")
    return [(f.kind, f.place and f.place.number, f.seq) for f in report.findings]


def changed(text: str, rehash: bool) -> str:
    """Another request id, or another mode of an "open" line; with its hash made anew or not."""
    edited = text.replace('"event":"', '"event":"x', 1)
    assert edited != text
    if not rehash:
        return edited
    body = edited[: edited.rindex(',"hash"')]
    return f'{body},"hash":"{w.digest(body)}"}}'


def places(seed: int, n: int) -> list[int]:
    """Lines (from 0): the first ones, the last ones, and some that the seed chooses."""
    return [*random.Random(seed).sample(range(n), 4), 0, 1, n - 2, n - 1]


def test_an_untouched_log_is_right(path):
    lines = w.run(N)
    report = verify(w.write(path, lines))
    assert report.ok and report.n_lines == N and not report.findings
    assert report.notes == [NO_CHECKPOINT]
    assert (report.first.seq, report.last.seq, report.last.hash) == (1, N, w.hash_of(lines[-1]))
    assert report.models == {w.MODEL: 1}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_short_log_is_right(path, n):
    assert found(path, w.run(N)[:n]) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_line_is_found_where_it_stands(path, seed):
    for i in places(seed, N):
        lines = w.run(N)
        lines[i] = changed(lines[i], rehash=False)
        assert found(path, lines) == [("changed", i + 1, i + 1)]


@pytest.mark.parametrize("seed", range(4))
def test_changed_in_any_byte(path, seed):
    """One flipped bit anywhere in the file is found at its line, or, in a newline, at the two lines that it joins."""
    rng = random.Random(seed)
    raw = "\n".join(w.run(N)).encode() + b"\n"
    for at in rng.sample(range(len(raw)), 40):
        edited = bytearray(raw)
        edited[at] ^= 1 << rng.randrange(8)
        path.write_bytes(edited)
        report = verify(path)
        line = raw[:at].count(b"\n") + 1
        assert report.findings and report.findings[0].place.number in (line, line + 1), (at, report.findings)


@pytest.mark.parametrize("seed", range(4))
def test_changed_and_hashed_anew(path, seed):
    for i in places(seed, N):
        lines = w.run(N)
        lines[i] = changed(lines[i], rehash=True)
        # the last line has none behind it that could tell: only a checkpoint sees this
        assert found(path, lines) == ([("changed", i + 1, i + 1)] if i < N - 1 else [])


@pytest.mark.parametrize("seed", range(4))
def test_removed_lines_are_counted(path, seed):
    rng = random.Random(seed)
    for i in places(seed, N)[:-1]:
        length = rng.randint(1, N - 1 - i)
        lines = w.run(N)
        del lines[i : i + length]
        assert found(path, lines) == [("removed", i + 1, i + 1)]


@pytest.mark.parametrize("seed", range(4))
def test_an_inserted_line_is_found(path, seed):
    for i in places(seed, N):
        lines = w.run(N)
        prev = w.hash_of(lines[i - 1]) if i else "0" * 64
        lines.insert(i, w.line(i + 1, prev, "request", request="forged"))
        kind, number, seq = found(path, lines)[0]
        # the last line and a forged one in its place look the same
        assert (kind, seq) == ("inserted", i + 1) and number in ((i + 1,) if i < N - 1 else (i + 1, i + 2))
        assert len(found(path, lines)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_inserted_without_a_right_hash(path, seed):
    for i in places(seed, N):
        lines = w.run(N)
        lines.insert(i, '{"seq":1}')
        assert found(path, lines) == [("inserted", i + 1, None)]


@pytest.mark.parametrize("seed", range(4))
def test_two_swapped_lines_are_found(path, seed):
    rng = random.Random(seed)
    pairs = [sorted(rng.sample(range(N), 2)) for _ in range(6)]
    for i, j in [*pairs, (0, 1), (0, 2), (0, N - 1), (N - 3, N - 1), (N - 2, N - 1), (7, 8), (7, 9)]:
        lines = w.run(N)
        lines[i], lines[j] = lines[j], lines[i]
        report = verify(w.write(path, lines))
        assert [f.kind for f in report.findings] == ["swapped"], (i, j, report.findings)
        for number, seq in ((i + 1, j + 1), (j + 1, i + 1)):
            assert f"{path}:{number} (seq {seq})" in report.findings[0].message


@pytest.mark.parametrize("seed", range(4))
def test_moved_lines_are_found(path, seed):
    rng = random.Random(seed)
    for _ in range(6):
        i, length = rng.randrange(N - 20), rng.randint(1, 3)
        lines = w.run(N)
        block = lines[i : i + length]
        del lines[i : i + length]
        to = i + length + rng.randint(3, 10)
        lines[to:to] = block
        assert found(path, lines) == [("moved", to + 1, i + 1)]


@pytest.mark.parametrize("seed", range(4))
def test_lines_that_stand_twice_are_found(path, seed):
    rng = random.Random(seed)
    for i in places(seed, N):
        at, length = rng.randrange(N + 1), rng.randint(1, min(5, N - i))
        lines = w.run(N)
        lines[at:at] = lines[i : i + length]
        kinds = found(path, lines)
        assert kinds and {kind for kind, _, _ in kinds} == {"duplicated"}, (i, at, length, kinds)
        if length == 1:
            assert kinds[0][1:] in ((at + 1, i + 1), (i + 1, i + 1))


def test_replaced_by_a_copy(path):
    lines = w.run(N)
    lines[20] = lines[10]
    assert sorted(found(path, lines)) == [("duplicated", 21, 11), ("removed", 22, 21)]


@pytest.mark.parametrize("seed", range(4))
def test_a_last_line_that_is_cut_off_is_found(path, seed):
    lines = w.run(N)
    kept = random.Random(seed).randrange(1, len(lines[-1]))
    assert found(path, [*lines[:-1], lines[-1][:kept]], end="") == [("cut", N, N)]


def test_last_newline_cut_off(path):
    assert found(path, w.run(N), end="") == [("cut", N, N)]


def test_a_dropped_tail_shows_only_as_a_missing_close(path):
    report = verify(w.write(path, w.run(N)[:-5]))
    assert report.ok
    assert NO_CHECKPOINT in report.notes and any('no "close" line' in note for note in report.notes)


def test_the_tail_of_another_log(path):
    lines = w.run(N)
    other = w.chain([w.opening(), *(w.request(i, "escalate") for i in range(N))])
    assert found(path, lines[:20] + other[20:]) == [("changed", 20, 20)]


def test_a_log_numbered_anew_after_its_begin_was_removed(path):
    lines = w.run(N)
    renumbered = w.chain([w.request(i) for i in range(10)], prev=w.hash_of(lines[10]))
    assert found(path, renumbered) == [("changed", 1, 1)]


@pytest.mark.parametrize("seed", range(60))
def test_several_edits_at_once_are_never_all_missed(path, seed):
    rng = random.Random(seed)
    lines = w.run(N)
    edited = list(lines)
    for _ in range(rng.randint(2, 6)):
        i, j = rng.randrange(len(edited)), rng.randrange(len(edited))
        match rng.randrange(6):
            case 0:
                edited[i] = changed(edited[i], rehash=False)
            case 1:
                edited[i] = changed(edited[i], rehash=True)
            case 2 if len(edited) > 5:
                del edited[i]
            case 3:
                edited.insert(i, edited[j])
            case 4:
                edited[i], edited[j] = edited[j], edited[i]
            case _:
                edited.insert(i, w.line(rng.randint(1, 2 * N), w.hash_of(lines[0]), "request"))
    # only a log that lost its end, or whose last line was made anew, can look whole
    tail = len(edited) <= N and edited[:-1] == lines[: len(edited) - 1]
    assert found(path, edited) or tail


def test_more_breaks_than_a_log_can_have_end_the_reading(path, monkeypatch):
    monkeypatch.setattr("llama_so8t.audit.verification.MAX_PARTS", 20)
    report = verify(w.write(path, ["junk"] * 1000))
    assert report.n_lines == 21 and report.findings[-1].kind == "stopped"


def test_memory_does_not_grow_with_the_log(path):
    lines = w.run(chain._RECENT * 2)
    whole = chain.Chain()
    for line in Log(w.write(path, lines)).lines():
        whole.add(line)
    assert len(whole.parts) == 1 and len(whole._recent) == chain._RECENT


def test_a_copy_from_far_back(path):
    lines = w.run(chain._RECENT + 100)
    lines.insert(len(lines) - 10, lines[3])
    assert found(path, lines) == [("duplicated", len(lines) - 10, 4)]


# --- rotated files ---------------------------------------------------------------------------


def test_rotated_files_are_one_chain(path):
    w.rotated(path, [5, 4, 3, 6, 3, 3, 3, 3, 3, 3, 3, 4])
    report = verify(path)
    assert report.ok and report.n_lines == 43
    assert report.last.place.file == str(path) and report.first.place.file == f"{path}.1"


def test_a_key_beside_the_log_is_no_rotated_file(path):
    w.rotated(path, [5, 4])
    for name in ("key", "01", "0", "1.gz", "x1"):
        path.with_name(f"{path.name}.{name}").write_text("other\n")
    assert verify(path).ok


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_rotated_file(path, number):
    files = w.rotated(path, [5, 4, 3, 6])
    path.with_name(f"{path.name}.{number}").unlink()
    kinds = {f.kind: f.message for f in verify(path).findings}
    first = sum(len(lines) for lines in files[: number - 1]) + 1
    last = first + len(files[number - 1]) - 1
    if number < 3:
        assert set(kinds) == {"missing", "removed"} and f"{path}.{number} is missing" in kinds["missing"]
    else:
        assert set(kinds) == {"removed"}  # the name of the newest cannot be known
    assert f"seq {first} to {last}" in kinds["removed"]


def test_rotated_files_renamed_over_a_removed_one(path):
    files = w.rotated(path, [5, 4, 3])
    Path(f"{path}.2").replace(f"{path}.1")
    [finding] = verify(path).findings
    assert finding.kind == "removed" and f"seq 1 to {len(files[0])}" in finding.message


def test_the_current_file_is_missing(path):
    w.rotated(path, [5, 4, 3])
    path.unlink()
    report = verify(path)
    assert [f.kind for f in report.findings] == ["missing"] and str(path) in report.findings[0].message


def test_the_current_file_removed_and_an_older_one_put_there(path):
    w.rotated(path, [5, 4, 3])
    Path(f"{path}.2").replace(path)
    [finding] = verify(path).findings
    assert finding.kind == "missing" and finding.seq == 9


def test_tampering_in_a_rotated_file_names_that_file(path):
    files = w.rotated(path, [5, 4, 3])
    files[1][2] = changed(files[1][2], rehash=False)
    w.write(Path(f"{path}.2"), files[1])
    [finding] = verify(path).findings
    assert (finding.kind, finding.place.file, finding.place.number, finding.seq) == ("changed", f"{path}.2", 3, 8)


def test_a_rotated_file_cut_off(path):
    files = w.rotated(path, [5, 4, 3])
    w.write(Path(f"{path}.1"), [*files[0][:-1], files[0][-1][:30]], end="")
    [finding] = verify(path).findings
    assert (finding.kind, finding.place.file, finding.place.number, finding.seq) == ("cut", f"{path}.1", 5, 5)


def test_two_swapped_files_are_found(path):
    w.rotated(path, [5, 4, 3])
    Path(f"{path}.1").replace(path.with_name("x"))
    Path(f"{path}.2").replace(f"{path}.1")
    path.with_name("x").replace(f"{path}.2")
    report = verify(path)
    assert not report.ok and {f.kind for f in report.findings} <= {"moved", "swapped"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_log_rotated_while_it_is_read(path, monkeypatch, when):
    """What was the current file when the reading began is read once, under whichever name."""
    w.rotated(path, [5, 4, 3])
    log = Log(path)

    def listdir(folder, real=os.listdir):
        names = real(folder)
        if not path.with_name(f"{path.name}.3").exists():
            path.rename(f"{path}.3")
            w.write(path, ["new file"])
        return names if when == "before" else real(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    assert [line.seq for line in log.lines()] == list(range(1, 13))


# --- open lines ------------------------------------------------------------------------------


def test_models_of_every_run_are_compared(path):
    other = w.digest("other")
    records = [w.opening(), w.request(1), ("close", {}), w.opening(other), w.opening(other), w.opening(None)]
    w.write(path, w.chain(records))
    assert verify(path).models == {w.MODEL: 1, other: 2, None: 1}
    report = verify(path, model_sha256=w.MODEL)
    assert [(f.kind, f.place.number) for f in report.findings] == [("model", 4), ("model", 6)]
    assert other in report.findings[0].message and "1 later run" in report.findings[0].message
    assert not verify(w.write(path, w.chain([w.request(1)])), model_sha256=w.MODEL).ok


def test_bytes_that_the_server_cut_away_are_told(path):
    report = verify(w.write(path, w.chain([w.opening(), w.opening(dropped=17), ("close", {})])))
    assert report.ok and any("17 bytes" in note and ":2 " in note for note in report.notes)


# --- hostile files ---------------------------------------------------------------------------


def sealed(body: str) -> str:
    """A line whose hash is right, whatever it says."""
    return f'{body},"hash":"{w.digest(body)}"}}'


HEAD = '{"seq":2,"time":"2026-11-24T05:05:05.123Z","event":"x"'
PREV = f'"prev":"{"0" * 64}"'


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (f'{HEAD},"a":NaN,{PREV}', "found NaN"),
        (f'{HEAD},"a":-Infinity,{PREV}', "found -Infinity"),
        (f'{HEAD},"a":1e999,{PREV}', "found 1e999"),
        (f'{HEAD},"a":{"9" * 5000},{PREV}', "is no JSON"),
        (f'{HEAD},"a":{"[" * 200_000}{"]" * 200_000},{PREV}', "is no JSON"),
        (f'{HEAD},"a":{{"b":1,"b":2}},{PREV}', "name 'b' appears twice"),
        (f'{HEAD},"seq":3,{PREV}', "name 'seq' appears twice"),
        (f"{HEAD.replace('2,', 'true,', 1)},{PREV}", "field 'seq'"),
        (f"{HEAD.replace('2,', '0,', 1)},{PREV}", "field 'seq'"),
        (f"{HEAD.replace('2,', '2.0,', 1)},{PREV}", "field 'seq'"),
        (f"{HEAD.replace('2,', '9007199254740993,', 1)},{PREV}", "field 'seq'"),
        (f"{HEAD.replace('T05', ' 05')},{PREV}", "field 'time'"),
        (f"{HEAD.replace(chr(34) + 'x' + chr(34), '[1]')},{PREV}", "field 'event'"),
        (f'{HEAD},"prev":7', "field 'prev'"),
        (f'{HEAD},"prev":"{"0" * 63}G"', "field 'prev'"),
        (f"{HEAD}", "field 'prev'"),
        ("[1", "is no JSON"),
    ],
)
def test_hostile_lines_are_named_and_end_no_reading(path, body, problem):
    lines = w.run(10)
    lines[1] = sealed(body)
    report = verify(w.write(path, lines))
    assert [(f.kind, f.place.number, f.seq) for f in report.findings] == [("changed", 2, 2)]
    assert problem in report.findings[0].message and len(report.findings[0].message) < 1000


@pytest.mark.parametrize("value", ["null", "7", '"text"', "[]", "{}"])
def test_values_that_are_no_record(path, value):
    lines = w.run(10)
    lines[4] = value
    assert found(path, lines) == [("changed", 5, 5)]


def test_bytes_that_are_no_utf8(path):
    raw = "\n".join(w.run(10)).encode() + b"\n"
    path.write_bytes(raw.replace(b"chatcmpl-3", b"chatcmpl\xff3"))
    [finding] = verify(path).findings
    assert finding.kind == "changed" and finding.seq == 5 and "UTF-8" in finding.message


def test_carriage_returns_are_a_change(path):
    path.write_bytes("\r\n".join(w.run(10)).encode() + b"\r\n")
    assert {f.kind for f in verify(path).findings} == {"changed"}


def test_a_huge_line_is_skipped(path, monkeypatch):
    monkeypatch.setattr("llama_so8t.audit.log.MAX_LINE", 4000)
    lines = w.run(10)
    lines[3] = '{"seq":4,"text":"' + "x" * 50_000 + '"}'
    assert found(path, lines) == [("changed", 4, 4)]
    lines[-1] = "x" * 50_000
    assert found(path, lines, end="") == [("changed", 4, 4), ("cut", 10, 10)]
    lines = w.run(10)
    lines[3] = lines[3][:-1] + "x" * (4000 - len(lines[3])) + "}"
    assert len(lines[3]) == 4000 and "its text" not in str(found(path, lines))


def test_seqs_far_apart_cost_nothing(path):
    lines = [*w.run(10), w.line(2**53, "0" * 64, "request"), w.line(2**53 - 5, "0" * 64, "request")]
    kinds = [kind for kind, _, _ in found(path, lines)]
    assert "removed" in kinds


def test_a_missing_log_is_an_error_and_an_empty_one_lost_its_lines(path):
    with pytest.raises(AuditError, match="no such file"):
        verify(path)
    path.write_bytes(b"")
    assert [f.kind for f in verify(path).findings] == ["removed"]
    with pytest.raises(AuditError, match="no such file"):
        verify(path.parent)


def test_names_of_events_to_come_are_no_fault(path):
    lines = w.chain([w.opening(), ("later", {"a": {"b": [1.5, None, True]}}), ("close", {})])
    assert verify(w.write(path, lines)).ok
    assert json.loads(lines[1])["event"] == "later"
