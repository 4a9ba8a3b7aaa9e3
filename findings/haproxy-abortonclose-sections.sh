#!/usr/bin/env bash
# One would expect: "option abortonclose" in a backend ends the request to the server when the client leaves. By the manual it
# belongs into defaults, listen or backend, and a frontend cannot have it.
# What happens: in a backend it is accepted without a warning and does nothing for a request that the server has already got
# and not yet answered. It works in defaults, from where the frontend inherits it, and in listen. In a frontend it is
# ignored with a warning, also if the backend has it, too.
# Versions: haproxy 2.6.12-1+deb12u4 (of Debian 12; the version of its other packages is not fixed).
# Why it matters: a model goes on computing for nobody, and a server that waits for a decision on an answer believes that
# somebody still waits for it, with a configuration that follows the manual and passes its check.
# Needs Debian 12 on amd64 and apt lists that are up to date (apt-get update); nothing is installed, root is not needed.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download -qq -o APT::Sandbox::User=root haproxy=2.6.12-1+deb12u4 liblua5.3-0 libopentracing-c-wrapper0 libopentracing1
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH="$dir/root/usr/lib/x86_64-linux-gnu"
"$dir/root/usr/sbin/haproxy" -v | sed -n 1p
python3 - <<'PY'
import select
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

option = "option abortonclose"
head = "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"


class Waiting(BaseHTTPRequestHandler):
    """Reads a request, and waits for the end of its connection instead of answering."""

    read, over, was_told = threading.Event(), threading.Event(), None

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        Waiting.read.set()
        Waiting.was_told = bool(select.select([self.connection], [], [], 5)[0])
        Waiting.over.set()
        self.close_connection = True

    def log_message(self, *arguments):
        pass


def configuration(port, in_defaults="", in_frontend="", in_backend=""):
    return (
        f"{head} {in_defaults}\nfrontend f\n bind 127.0.0.1:{port}\n {in_frontend}\n default_backend b\n"
        f"backend b\n {in_backend}\n server s 127.0.0.1:{server.server_port}\n"
    )


def is_told(text, port):
    """Is the server told within five seconds that the client has left, and does HAProxy warn of the configuration?"""
    with open("haproxy.cfg", "w") as file:
        file.write(text)
    with open("haproxy.log", "w") as log:
        process = subprocess.Popen(["root/usr/sbin/haproxy", "-db", "-f", "haproxy.cfg"], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                client = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        Waiting.read.clear()
        Waiting.over.clear()
        client.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
        assert Waiting.read.wait(30)
        client.close()
        assert Waiting.over.wait(30)
    finally:
        process.terminate()
        process.wait()
    return Waiting.was_told, "'abortonclose' ignored" in open("haproxy.log").read()


server = ThreadingHTTPServer(("127.0.0.1", 0), Waiting)
threading.Thread(target=server.serve_forever, daemon=True).start()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
listen = f"{head}listen l\n bind 127.0.0.1:{port}\n {option}\n server s 127.0.0.1:{server.server_port}\n"
cases = {  # configuration, whether the server is told, whether HAProxy warns
    "nowhere": (configuration(port), False, False),
    "defaults": (configuration(port, in_defaults=option), True, False),
    "listen": (listen, True, False),
    "backend": (configuration(port, in_backend=option), False, False),
    "frontend": (configuration(port, in_frontend=option), False, True),
    "frontend and backend": (configuration(port, in_frontend=option, in_backend=option), False, True),
}
for place, (text, *expected) in cases.items():
    told, warned = is_told(text, port)
    print(f"{place:20} server is {'told' if told else 'not told in 5 s'}{', with a warning' if warned else ''}")
    assert [told, warned] == expected
print("as stated")
PY
