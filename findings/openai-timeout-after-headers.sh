#!/usr/bin/env bash
# One would expect: timeout and max_retries of the two official clients of OpenAI mean the same, for an answer that comes
# whole and for one that is streamed.
# What happens: the timeout of openai for npm ends when the headers are there. An answer that stalls after them is waited
# for, streamed or not, three times as long as the timeout here. (The issue is known: openai-node 1825.) openai for Python
# times every read. It asks three times where the headers are late, and where a whole answer stalls, but once where a
# stream stalls before its first event.
# Versions: openai 3.57.0 (Python) and 6.49.0 (npm), node 20.
# Why it matters: servers send the headers of a stream at once, before the prompt is read. So a short timeout with retries,
# tested against a server that is down or slow to answer, does nothing for a stream in npm and never retries one in Python.
# Needs node and npm.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check openai==3.57.0
npm install --silent --no-audit --no-fund --prefix "$dir" openai@6.49.0 >/dev/null
cat > ask.mjs <<'JS'
import OpenAI from "openai";
const [baseURL, stream] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "k", timeout: 1000, maxRetries: 2 });
let result = "";
try {
  const answer = await client.chat.completions.create({ model: "m", messages: [], stream: stream === "stream" });
  if (stream === "stream") for await (const chunk of answer) result += chunk.choices[0].delta.content;
  else result = answer.choices[0].message.content;
} catch (error) {
  result = error.message;
}
process.stdout.write(result);
JS
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import APITimeoutError, OpenAI

print("openai for Python", metadata.version("openai"))
print("openai for npm", json.load(open("node_modules/openai/package.json"))["version"])


class Handler(BaseHTTPRequestHandler):
    """Answers "one", and waits for three seconds at one place."""

    waits_at, n_requests = "nowhere", 0

    def do_POST(self):
        Handler.n_requests += 1
        stream = json.loads(self.rfile.read(int(self.headers["content-length"]))).get("stream")
        message = {"role": "assistant", "content": "one"}
        choice = {"index": 0, "delta" if stream else "message": message, "finish_reason": "stop"}
        kind = "chat.completion.chunk" if stream else "chat.completion"
        text = json.dumps({"id": "c", "object": kind, "created": 1, "model": "m", "choices": [choice]})
        try:
            self.wait("before the headers")
            self.send_response(200)
            self.send_header("content-type", "text/event-stream" if stream else "application/json")
            self.end_headers()
            self.wait("after the headers")
            self.wfile.write((f"data: {text}\n\ndata: [DONE]\n\n" if stream else text).encode())
        except OSError:
            pass  # the client has left

    def wait(self, place):
        if Handler.waits_at == place:
            time.sleep(3)

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
client = OpenAI(base_url=url, api_key="k", timeout=1, max_retries=2)


def python(stream):
    try:
        answer = client.chat.completions.create(model="m", messages=[], stream=stream)
        return "".join(chunk.choices[0].delta.content for chunk in answer) if stream else answer.choices[0].message.content
    except APITimeoutError as error:
        return str(error)


def npm(stream):
    command = ["node", "ask.mjs", url, "stream" if stream else "whole"]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, timeout=60).stdout


late = "Request timed out."
expected = {  # place, streamed -> of Python, of npm: what the client returns, and the requests that it sent
    ("nowhere", False): (("one", 1), ("one", 1)),
    ("nowhere", True): (("one", 1), ("one", 1)),
    ("before the headers", False): ((late, 3), (late, 3)),
    ("before the headers", True): ((late, 3), (late, 3)),
    ("after the headers", False): ((late, 3), ("one", 1)),
    ("after the headers", True): ((late, 1), ("one", 1)),
}
for (place, stream), results in expected.items():
    for ask, result in zip((python, npm), results, strict=True):
        Handler.waits_at, Handler.n_requests = place, 0
        seen = ask(stream), Handler.n_requests
        print(f"{ask.__name__:6} {'stream' if stream else 'whole':6} stalls {place:18} {seen[1]} request(s): {seen[0]}")
        assert seen == result
print("as stated")
PY
