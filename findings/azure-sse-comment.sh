#!/usr/bin/env bash
# One would expect: a client of a streamed chat skips comments, the lines that begin with a colon. Server-sent events
# have them for keeping a quiet connection open, and llama-server sends one while an answer takes long.
# What happens: azure-ai-inference for Python raises ValueError at a comment ("SSE event not supported"), in the middle
# of an answer. Lines that end with CR and LF, which the format allows as well, raise it too. The clients openai, groq and
# huggingface_hub read all of these.
# Versions: azure-ai-inference 1.0.0b9, openai 3.57.0, groq 1.7.0, huggingface_hub 2.4.0.
# Why it matters: a gateway or server that pings works in every test with short answers, and breaks this client where
# an answer takes longer than the first ping.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check azure-ai-inference==1.0.0b9 openai==3.57.0 groq==1.7.0 \
    huggingface_hub==2.4.0
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from azure.ai.inference import ChatCompletionsClient
from azure.core.credentials import AzureKeyCredential
from groq import Groq
from huggingface_hub import InferenceClient
from openai import OpenAI

packages = ("azure-ai-inference", "openai", "groq", "huggingface_hub")
print(*(f"{name} {metadata.version(name)}" for name in packages))
form = {"end": "\n", "comment": False}


def event(text, finish_reason=None):
    delta = {"role": "assistant", "content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        lines = [f"data: {event('one ')}", "", f"data: {event('two', 'stop')}", "", "data: [DONE]", ""]
        if form["comment"]:
            lines[2:2] = [": still there", ""]
        self.wfile.write("".join(line + form["end"] for line in lines).encode())

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
chat = {"messages": [{"role": "user", "content": "count"}], "stream": True}
azure = ChatCompletionsClient(url, AzureKeyCredential("k"))
openai = OpenAI(base_url=url, api_key="k")
groq = Groq(base_url=url, api_key="k")
hub = InferenceClient(base_url=url, api_key="k")
clients = {
    "azure-ai-inference": lambda: azure.complete(**chat),
    "openai": lambda: openai.chat.completions.create(model="m", **chat),
    "groq": lambda: groq.chat.completions.create(model="m", **chat),
    "huggingface_hub": lambda: hub.chat_completion(**chat),
}
seen = {}
for name, ask in clients.items():
    for what, settings in {
        "plain": {"end": "\n", "comment": False},
        "comment": {"end": "\n", "comment": True},
        "CR LF": {"end": "\r\n", "comment": False},
    }.items():
        form.update(settings)
        try:
            result = "".join(chunk.choices[0].delta.content for chunk in ask())
        except ValueError as error:
            result = f"ValueError: {error}"
        seen[name, what] = result
        print(f"{name:18} {what:8} {result}")
for (name, what), result in seen.items():
    breaks = name == "azure-ai-inference" and what != "plain"
    assert result.startswith("ValueError: SSE event not supported") if breaks else result == "one two"
print("as stated")
PY
