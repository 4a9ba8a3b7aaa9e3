#!/usr/bin/env bash
# One would expect: LiteLLM passes on what the OpenAI API says of a refusal, message.refusal and in a stream
# delta.refusal, in both or in neither.
# What happens: an answer has its refusal. In a stream the chunk with delta.refusal is gone, and stream_chunk_builder
# rebuilds half an answer with finish_reason "content_filter" and without a reason. openai-python shows both from the
# same server.
# Versions: litellm 1.110.2, openai 3.57.0.
# Why it matters: behind LiteLLM a streamed refusal looks like an answer that was cut; the text that says why never
# reaches the user.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check litellm==1.110.2 openai==3.57.0
LITELLM_LOCAL_MODEL_COST_MAP=True venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt >&2; exit 1; }
import http.server
import importlib.metadata as metadata
import json
import threading

import litellm
import openai

litellm.suppress_debug_info = True

print(*(f"{name} {metadata.version(name)}" for name in ("litellm", "openai")))


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
arguments = {"model": "openai/m", "messages": messages, "api_base": url + "/v1", "api_key": "none"}
whole = litellm.completion(**arguments).choices[0]
chunks = list(litellm.completion(**arguments, stream=True))
rebuilt = litellm.stream_chunk_builder(chunks).choices[0]
streamed = [chunk.choices[0].delta.model_dump(exclude_none=True) for chunk in chunks]
client = openai.OpenAI(base_url=url + "/v1", api_key="none")
by_openai = [chunk.choices[0].delta.refusal for chunk in client.chat.completions.create(model="m", messages=messages, stream=True)]
print("litellm, whole   :", whole.finish_reason, whole.message.model_dump(exclude_none=True))
print("litellm, stream  :", chunks[-1].choices[0].finish_reason, streamed)
print("litellm, rebuilt :", rebuilt.finish_reason, rebuilt.message.model_dump(exclude_none=True))
print("openai, stream   :", by_openai)
assert whole.message.refusal == "I will not."
assert "I will not." not in repr(chunks) + repr(rebuilt) and rebuilt.message.content == "Half an answer"
assert "I will not." in by_openai
print("as stated")
PY
