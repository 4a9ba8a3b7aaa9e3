#!/usr/bin/env bash
# One would expect: get_final_response() of a streamed response returns the response, whichever of its three ends it has:
# response.completed, response.incomplete or response.failed.
# What happens: the helper responses.stream of openai for Python waits for response.completed only. A response that is cut
# at max_output_tokens, or ended by a content filter, ends with response.incomplete; get_final_response() then
# raises RuntimeError, although the event with the whole response was read. Without a stream the same response is
# returned, with its status.
# Versions: openai 3.57.0.
# Why it matters: an application works until an answer is long or refused, and then shows an error instead of the text it
# already has. The last event of the iteration holds the response.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check openai==3.57.0
venv/bin/python - <<'PY'
import importlib.metadata as metadata
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import OpenAI

print("openai", metadata.version("openai"))
ending = {"status": "completed", "reason": None}


def whole():
    part = {"type": "output_text", "text": "one two", "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": ending["status"], "content": [part]}
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": ending["status"], "error": None,
        "incomplete_details": {"reason": ending["reason"]} if ending["reason"] else None, "instructions": None,
        "metadata": {}, "output": [item], "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "auto",
        "tools": [], "top_p": 1.0, "usage": {
            "input_tokens": 1, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 3,
        },
    }  # fmt: skip


def events():
    response = whole()
    item = response["output"][0]
    part = item["content"][0]
    begun = response | {"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    at = {"output_index": 0, "content_index": 0, "item_id": "msg_1"}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item | {"status": "in_progress", "content": []}}
    yield {"type": "response.content_part.added", **at, "part": part | {"text": ""}}
    yield {"type": "response.output_text.delta", **at, "delta": "one two", "logprobs": []}
    yield {"type": "response.output_text.done", **at, "text": "one two", "logprobs": []}
    yield {"type": "response.content_part.done", **at, "part": part}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": f"response.{ending['status']}", "response": response}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        stream = json.loads(self.rfile.read(int(self.headers["content-length"]))).get("stream")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if stream else "application/json")
        self.end_headers()
        text = json.dumps(whole())
        if stream:
            numbered = (event | {"sequence_number": i} for i, event in enumerate(events()))
            text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in numbered)
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="k")
for status, reason in (("completed", None), ("incomplete", "max_output_tokens"), ("incomplete", "content_filter")):
    ending.update(status=status, reason=reason)
    response = client.responses.create(model="m", input="count")
    assert (response.status, response.output_text) == (status, "one two")
    with client.responses.stream(model="m", input="count") as stream:
        last = [event for event in stream][-1]
        try:
            final = stream.get_final_response().output_text
        except RuntimeError as error:
            final = f"RuntimeError: {error}"
    print(f"{status} ({reason}): last event {last.type} with {last.response.output_text!r}, get_final_response: {final}")
    assert last.response.output_text == "one two"
    assert final == "one two" if status == "completed" else final.startswith("RuntimeError: Didn't receive")
print("as stated")
PY
