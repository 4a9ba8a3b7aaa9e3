#!/usr/bin/env bash
# One would expect: chat clients that speak the OpenAI format keep message.refusal, or at least raise when an answer was
# filtered.
# What happens: Haystack's OpenAIChatGenerator gives a reply without any content (text is None), and mistralai a message
# of None, both with finish_reason "content_filter" and no trace of the reason anywhere in the object. aisuite keeps it.
# Versions: haystack-ai 3.4.1, mistralai 3.7.0, aisuite 0.2.0, openai 3.57.0.
# Why it matters: code that reads only `text` gets None or raises further on; a refusal must be in `content` too to be
# seen there.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check haystack-ai==3.4.1 mistralai==3.7.0 aisuite==0.2.0 openai==3.57.0
HAYSTACK_TELEMETRY_ENABLED=False venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt >&2; exit 1; }
import http.server
import importlib.metadata as metadata
import json
import threading

import aisuite
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from mistralai.client import Mistral

print(*(f"{name} {metadata.version(name)}" for name in ("haystack-ai", "mistralai", "aisuite", "openai")))


class Refusing(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible server that refuses: the reason is in message.refusal, or in delta.refusal after half an answer."""

    n_requests = 0

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        Refusing.n_requests += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        head = {"id": "c", "created": 1, "model": "m"}
        if body.get("stream"):
            deltas = [{"role": "assistant", "content": "Half an answer"}, {"refusal": "I will not."}, {}]
            events = [
                head | {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "content_filter"}]}
                for delta in deltas
            ]
            kind, data = "text/event-stream", "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        else:
            message = {"role": "assistant", "content": None, "refusal": "I will not."}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            answer = {"object": "chat.completion", "usage": usage, "choices": [{"index": 0, "message": message, "finish_reason": "content_filter"}]}
            kind, data = "application/json", json.dumps(head | answer)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data.encode())))
        self.end_headers()
        self.wfile.write(data.encode())


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
messages = [{"role": "user", "content": "a question"}]
generator = OpenAIChatGenerator(model="m", api_base_url=url + "/v1", api_key=Secret.from_token("none"))
haystack = generator.run([ChatMessage.from_user("a question")])["replies"][0]
mistral = Mistral(api_key="none", server_url=url).chat.complete(model="m", messages=messages)
suite = aisuite.Client({"openai": {"api_key": "none", "base_url": url + "/v1"}}).chat.completions.create(model="openai:m", messages=messages)
print("haystack :", haystack.text, haystack.meta["finish_reason"])
print("mistralai:", mistral.choices[0].message.content, mistral.choices[0].finish_reason)
print("aisuite  :", suite.choices[0].message.content, suite.choices[0].finish_reason, "refusal:", suite.choices[0].message.refusal)
assert haystack.text is None and haystack.meta["finish_reason"] == "content_filter" and "I will not." not in repr(haystack)
assert mistral.choices[0].message.content is None and "I will not." not in repr(mistral)
assert suite.choices[0].message.refusal == "I will not."
print("as stated")
PY
