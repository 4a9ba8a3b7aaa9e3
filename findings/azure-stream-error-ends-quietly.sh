#!/usr/bin/env bash
# One would expect: an error in the middle of a stream, an event {"error": {...}} instead of a chunk, is raised by the client.
# Servers have no other way to tell it, because status 200 is sent by then.
# What happens: azure-ai-inference for Python takes the event for a chunk without choices. The loop ends as after a whole
# answer, with the text so far, and nothing is raised or logged. openai, groq and huggingface_hub raise an error
# with the text of the server.
# Versions: azure-ai-inference 1.0.0b9, openai 3.57.0, groq 1.7.0, huggingface_hub 2.4.0.
# Why it matters: half an answer passes for a whole one. Only the missing finish_reason tells them apart.
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
from groq import APIError as GroqError
from groq import Groq
from huggingface_hub import InferenceClient
from huggingface_hub.errors import UnknownError
from openai import APIError, OpenAI

packages = ("azure-ai-inference", "openai", "groq", "huggingface_hub")
print(*(f"{name} {metadata.version(name)}" for name in packages))
error = {"error": {"message": "the disk is full", "type": "server_error", "param": None, "code": None}}


class Handler(BaseHTTPRequestHandler):
    ends_in_error = False

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        deltas = [({"role": "assistant", "content": "one "}, None), ({"content": "two"}, "stop")]
        choices = [{"index": 0, "delta": delta, "finish_reason": reason} for delta, reason in deltas]
        events = [{"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]} for choice in choices]
        if Handler.ends_in_error:
            events[1] = error
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write("".join(f"data: {event}\n\n" for event in [*map(json.dumps, events), "[DONE]"]).encode())

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
for Handler.ends_in_error in (False, True):
    for name, ask in clients.items():
        text, reason, raised = "", None, None
        try:
            for chunk in ask():
                for choice in chunk.choices or []:
                    text += choice.delta.content or ""
                    reason = choice.finish_reason or reason
        except (APIError, GroqError, UnknownError) as problem:
            raised = f"{type(problem).__name__}: {problem}"
        print(f"{name:18} {'with' if Handler.ends_in_error else 'without'} error: {text!r}, finish_reason {reason and str(reason)}, raised {raised}")
        if not Handler.ends_in_error:
            assert text == "one two" and reason == "stop" and raised is None
        elif name == "azure-ai-inference":
            assert text == "one " and reason is None and raised is None
        else:
            assert text == "one " and "the disk is full" in raised
print("as stated")
PY
