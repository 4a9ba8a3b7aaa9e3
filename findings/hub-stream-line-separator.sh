#!/usr/bin/env bash
# One would expect: an event of a stream ends where its line ends, at CR or LF, whatever its text contains.
# What happens: InferenceClient of huggingface_hub also ends lines at the characters U+2028, U+2029 and U+0085, because
# it reads the stream by the lines of Python's str.splitlines. A model that writes one of them ends the stream with a
# JSONDecodeError if the server sends JSON in plain UTF-8, as llama-server does; with escapes (\u2028) it is
# read. The client openai reads both. Without a stream both clients read both.
# Versions: huggingface_hub 2.4.0, openai 3.57.0.
# Why it matters: U+2028 stands in texts copied from office programs and PDF files, so a summary of such a text fails
# now and then, only in streams and only with this client.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check huggingface_hub==2.4.0 openai==3.57.0
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import InferenceClient
from openai import OpenAI

print(*(f"{name} {metadata.version(name)}" for name in ("huggingface_hub", "openai")))
answer = {"text": "", "escaped": False}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        stream = json.loads(self.rfile.read(int(self.headers["content-length"]))).get("stream")
        message = {"role": "assistant", "content": answer["text"]}
        choice = {"index": 0, "delta" if stream else "message": message, "finish_reason": "stop"}
        kind = "chat.completion.chunk" if stream else "chat.completion"
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = {"id": "c", "object": kind, "created": 1, "model": "m", "choices": [choice], "usage": usage}
        text = json.dumps(body, ensure_ascii=answer["escaped"])
        data = (f"data: {text}\n\ndata: [DONE]\n\n" if stream else text).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if stream else "application/json; charset=utf-8")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
messages = [{"role": "user", "content": "summarize"}]
hub = InferenceClient(base_url=url, api_key="k")
openai = OpenAI(base_url=url, api_key="k")
clients = {
    "huggingface_hub": lambda stream: hub.chat_completion(messages, stream=stream),
    "openai": lambda stream: openai.chat.completions.create(model="m", messages=messages, stream=stream),
}
for name, ask in clients.items():
    for code in (0x2028, 0x2029, 0x85, 0x20):
        for escaped in (False, True):
            for stream in (True, False):
                answer.update(text=f"one{chr(code)}two", escaped=escaped)
                try:
                    result = ask(stream)
                    chunks = [chunk.choices[0].delta.content for chunk in result] if stream else None
                    result = "".join(chunks) if stream else result.choices[0].message.content
                except json.JSONDecodeError:
                    result = "JSONDecodeError"
                breaks = name == "huggingface_hub" and stream and not escaped and code != 0x20
                print(f"{name:16} U+{code:04X} {'escaped' if escaped else 'plain':8} {'stream' if stream else 'whole':7} {result!a}")
                assert result == ("JSONDecodeError" if breaks else answer["text"])
print("as stated")
PY
