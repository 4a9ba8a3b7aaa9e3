#!/usr/bin/env bash
# One would expect: an agent stops when the model's server refuses (finish_reason "content_filter", the reason in
# message.refusal).
# What happens: smolagents reads the content only, takes the missing text for a step that could not be parsed, and asks
# the same again until max_steps is used up, and once more for a final answer. With 4 steps that is 5 refused requests;
# the result of run() is None, without an exception. The refusal itself is in none of the steps.
# Versions: smolagents 1.26.0, openai 3.57.0.
# Why it matters: one refused question is counted, held or logged several times by the server, and a rate limit by
# refusals locks the user out.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check smolagents==1.26.0 openai==3.57.0
venv/bin/python - 2>stderr.txt <<'PY' || { cat stderr.txt >&2; exit 1; }
import http.server
import importlib.metadata as metadata
import json
import threading

from smolagents import OpenAIServerModel, ToolCallingAgent

print(*(f"{name} {metadata.version(name)}" for name in ("smolagents", "openai")))


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
model = OpenAIServerModel("m", api_base=url + "/v1", api_key="none")
agent = ToolCallingAgent(tools=[], model=model, max_steps=4, verbosity_level=0)
result = agent.run("a question")
errors = [type(step.error).__name__ for step in agent.memory.steps if getattr(step, "error", None)]
print("result:", result, "| requests:", Refusing.n_requests, "| errors of the steps:", errors)
assert result is None and Refusing.n_requests == 5
print("as stated")
PY
