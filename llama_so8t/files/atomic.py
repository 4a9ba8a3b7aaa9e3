"""Files and directories that appear complete or not at all."""

import glob
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; on success the file is synced and renamed, otherwise removed.

    SIGTERM counts as a failure like Ctrl-C: both remove the file. What a killed process left under such a name
    is removed first.

    Raises:
        OSError: the file system refuses; nothing of the file is left.
        KeyboardInterrupt: SIGTERM came.
    """
    with new_files([path]) as (temporary,):
        yield temporary


@contextmanager
def new_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """`new_file` for several files that belong together: the first one, by which they are known, comes last."""
    temporaries = [path.with_name(f".{path.name}.{os.getpid()}.partial") for path in paths]
    for path in paths:
        _remove_orphans(path)
    with _terminable():
        try:
            yield temporaries
            for temporary in temporaries:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            for temporary, path in reversed(list(zip(temporaries, paths, strict=True))):
                os.replace(temporary, path)
        except BaseException:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
            raise


def _remove_orphans(path: Path) -> None:
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        pid = file.name.split(".")[-2]
        if not pid.isdecimal() or not file.is_file():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
        except (PermissionError, OverflowError):
            pass


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside ``path``; on success it takes its place, otherwise it is removed.

    Raises:
        OSError: the file system refuses; what was at ``path`` is there again.
        KeyboardInterrupt: SIGTERM came.
    """
    path = path.resolve()  # "." has no name to put the temporary one beside
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    with _terminable():
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                os.replace(path, replaced)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if replaced.exists() and not path.exists():
                os.replace(replaced, path)
            raise
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """Turns SIGTERM into KeyboardInterrupt inside the block; only the main thread can."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
