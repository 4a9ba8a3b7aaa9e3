#!/usr/bin/env bash
# One would expect: a refusal raises ContentFilterError in pydantic-ai, whether the answer is streamed or not, as it does
# where the refusal comes first.
# What happens: if a stream has begun with text and is then refused (delta.refusal, finish_reason "content_filter"),
# run_stream and run with an event_stream_handler return the half answer as an ordinary output. The text of the refusal
# stands in response.provider_details only. The same answer, not streamed, raises ContentFilterError with it.
# Versions: pydantic-ai-slim 2.68.0, openai 3.57.0.
# Why it matters: a filter or guard that reads along stops most answers after they have begun. An application that was
# tested without streams counts on the error, and stores or shows half an answer in its stead. response.finish_reason is
# "content_filter" in both.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "pydantic-ai-slim[openai]==2.68.0" openai==3.57.0
venv/bin/python - <<'PY'
import asyncio
import importlib.metadata as metadata
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pydantic_ai import Agent
from pydantic_ai.exceptions import ContentFilterError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

print(*(f"{name} {metadata.version(name)}" for name in ("pydantic-ai-slim", "openai")))


class Refusing(BaseHTTPRequestHandler):
    """Says ``text``, and refuses then."""

    text = ""

    def do_POST(self):
        stream = json.loads(self.rfile.read(int(self.headers["content-length"]))).get("stream")
        head = {"id": "c", "created": 1, "model": "m", "object": "chat.completion.chunk" if stream else "chat.completion"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        if stream:
            deltas = [{"role": "assistant", "content": self.text}, {"refusal": "I will not."}, {}]
            choices = [{"index": 0, "delta": delta, "finish_reason": None if delta else "content_filter"} for delta in deltas]
            events = [json.dumps(head | {"choices": [choice]}) for choice in choices] + ["[DONE]"]
            data = "".join(f"data: {event}\n\n" for event in events)
        else:
            message = {"role": "assistant", "content": self.text or None, "refusal": "I will not."}
            data = json.dumps(head | {"usage": usage, "choices": [{"index": 0, "message": message, "finish_reason": "content_filter"}]})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if stream else "application/json")
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
threading.Thread(target=server.serve_forever, daemon=True).start()
provider = OpenAIProvider(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="k")
agent = Agent(OpenAIChatModel("m", provider=provider))


async def read(_, events):
    async for _event in events:
        pass


async def whole():
    result = await agent.run("a question")
    return result.output, result.response


async def run_stream():
    async with agent.run_stream("a question") as result:
        return await result.get_output(), result.response


async def handler():
    result = await agent.run("a question", event_stream_handler=read)
    return result.output, result.response


for Refusing.text in ("", "Half an answer"):
    for ask in (whole, run_stream, handler):
        try:
            output, response = asyncio.run(ask())
            seen = f"output {output!r}, finish_reason {response.finish_reason}, refusal {response.provider_details['refusal']!r}"
        except ContentFilterError as error:
            seen = f"ContentFilterError: {error.message}"
        print(f"text {Refusing.text!r:16} {ask.__name__:10} {seen}")
        if Refusing.text and ask is not whole:
            assert seen == "output 'Half an answer', finish_reason content_filter, refusal 'I will not.'"
        else:
            assert seen.startswith("ContentFilterError") and "I will not." in seen
print("as stated")
PY
