#!/usr/bin/env bash
# One would expect: a trace of a chat says why its answer ended, streamed or not, as the conventions for generative AI
# have an attribute for it (gen_ai.response.finish_reasons).
# What happens: the instrumentation of the client openai records it for whole answers only. The span of a stream has model,
# id and tokens, and no finish reason. Calls of chat.completions.parse and of moderations make no span at all.
# Versions: opentelemetry-instrumentation-openai-v2 2.4b0, opentelemetry-util-genai 0.4b0, opentelemetry-sdk 1.45.2,
# openai 3.57.0, httpx 0.28.1 (the instrumentation imports httpx and a module that newer opentelemetry-util-genai lacks,
# but requires neither).
# Why it matters: an alert on finish_reasons == content_filter counts refusals of an application that streams as zero.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check opentelemetry-instrumentation-openai-v2==2.4b0 \
    opentelemetry-util-genai==0.4b0 opentelemetry-sdk==1.45.2 openai==3.57.0 httpx==0.28.1
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry import trace
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

packages = ("opentelemetry-instrumentation-openai-v2", "opentelemetry-util-genai", "openai")
print(*(f"{name} {metadata.version(name)}" for name in packages))
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
OpenAIInstrumentor().instrument()

from openai import ContentFilterFinishReasonError, OpenAI  # noqa: E402  (behind the instrumentation)

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
MESSAGE = {"role": "assistant", "content": None, "refusal": "no"}


def completion(kind, choices, **more):
    return json.dumps({"id": "c", "object": kind, "created": 1, "model": "m", "choices": choices, **more})


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "moderations" in self.path:
            text = json.dumps({"id": "m", "model": "m", "results": [{"flagged": True, "categories": {}}]})
        elif request.get("stream"):
            parts = (MESSAGE, None), ({}, "content_filter")
            chunks = [
                completion("chat.completion.chunk", [{"index": 0, "delta": delta, "finish_reason": reason}])
                for delta, reason in parts
            ]
            chunks.append(completion("chat.completion.chunk", [], usage=USAGE))
            text = "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"])
        else:
            choice = {"index": 0, "message": MESSAGE, "finish_reason": "content_filter"}
            text = completion("chat.completion", [choice], usage=USAGE)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if request.get("stream") else "application/json")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="k")
chat = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def parse():
    try:
        client.chat.completions.parse(**chat)
    except ContentFilterFinishReasonError:
        pass


calls = {
    "create": lambda: client.chat.completions.create(**chat),
    "create, stream": lambda: list(client.chat.completions.create(**chat, stream=True)),
    "create, stream with usage": lambda: list(
        client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})
    ),
    "parse": parse,
    "moderations": lambda: client.moderations.create(input="x"),
}
seen = {}
for name, call in calls.items():
    call()
    spans = exporter.get_finished_spans()
    exporter.clear()
    seen[name] = [dict(span.attributes).get("gen_ai.response.finish_reasons") for span in spans]
    print(f"{name:26} spans {len(spans)}, finish reasons {seen[name]}")
assert seen == {
    "create": [("content_filter",)],
    "create, stream": [None],
    "create, stream with usage": [None],
    "parse": [],
    "moderations": [],
}
print("as stated")
PY
