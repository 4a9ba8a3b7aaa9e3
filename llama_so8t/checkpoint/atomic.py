"""Files and directories that appear complete or not at all."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; on success the file is synced and renamed, otherwise removed.

    SIGTERM counts as a failure like Ctrl-C: both remove the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _terminable():
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside ``path``; on success it takes its place, otherwise it is removed."""
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
