"""A program on a free port: waited for, asked, ended; and what it said where it does not start."""

import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from llama_so8t.errors import RuntimeLibraryError
from llama_so8t.server_process import LlamaServer, ServerProcess

SERVER = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
asked = 0
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        self.send_response(503 if asked < 3 else 200)
        self.end_headers()
print("I listen", *sys.argv[5:], flush=True)
HTTPServer((sys.argv[2], int(sys.argv[4])), Handler).serve_forever()
"""


@pytest.fixture
def program(tmp_path):
    """Writes a program: ``program(text)``."""

    def write(text: str) -> Path:
        path = tmp_path / "server"
        path.write_text(text.replace("{python}", sys.executable))
        path.chmod(0o755)
        return path

    return write


def test_a_server_is_ready_when_it_listens_and_over_when_it_is_left(program):
    with ServerProcess(program(SERVER), "--more", 1) as server:
        assert server.is_alive and "I listen --more 1" in server.output()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(server.url)
    assert not server.is_alive


def test_a_llama_server_is_ready_when_its_model_is_loaded(program):
    with LlamaServer(program(SERVER)) as server, urllib.request.urlopen(f"{server.url}/health") as reply:
        assert reply.status == 200


def test_two_servers_have_two_ports(program):
    path = program(SERVER)
    with ServerProcess(path) as first, ServerProcess(path) as second:
        assert first.port != second.port and first.is_alive and second.is_alive


def test_a_program_that_ends_at_start_is_an_error_with_its_last_words(program):
    with pytest.raises(RuntimeLibraryError, match=r"server: ended at start with code 3:\nno such model"):
        ServerProcess(program("#!{python}\nimport sys\nprint('no such model')\nsys.exit(3)\n"))


def test_a_program_that_does_not_become_ready_is_ended(program, monkeypatch):
    monkeypatch.setattr(ServerProcess, "patience", 0.3)
    made = []
    monkeypatch.setattr(ServerProcess, "is_ready", lambda self: made.append(self))
    with pytest.raises(RuntimeLibraryError, match=r"not ready after 0.3 s:\nwaiting"):
        ServerProcess(program("#!/bin/sh\necho waiting\nexec sleep 60\n"))
    assert not made[0].is_alive


def test_the_environment_is_the_given_one(program, monkeypatch):
    monkeypatch.setenv("SO8T_TEST", "mine")
    text = SERVER.replace("print(", "import os\nprint(os.environ.get('SO8T_TEST'), ")
    with ServerProcess(program(text)) as server:
        assert "mine I listen" in server.output()
    with ServerProcess(program(text), environment={"PATH": "/bin"}) as server:
        assert "None I listen" in server.output()
