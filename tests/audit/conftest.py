"""What the tests of `so8t audit` share."""

import pytest

from llama_so8t import cli


@pytest.fixture
def so8t(monkeypatch, capsys):
    """Runs `so8t audit`; returns exit code, stdout and stderr."""
    monkeypatch.setattr(cli, "COMMANDS", ("audit",))

    def run(*args) -> tuple[int, str, str]:
        code = cli.main(["audit", *map(str, args)])
        return code, *capsys.readouterr()

    return run
