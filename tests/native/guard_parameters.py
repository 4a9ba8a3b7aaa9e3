"""Every parameter of a request that the pinned llama-server reads, with values that try to move a verdict.

`read_from_source` finds them in the sources of the server. Each has to be in one of the tables below: in `PARAMETERS`
with bodies to send, or in `ELSEWHERE` with the reason why it moves nothing by itself. A new one fails the tests.
"""

import re
from pathlib import Path
from typing import Any

Body = dict[str, Any]

SOURCES = (
    "tools/server/server-schema.cpp",
    "tools/server/server-common.cpp",
    "tools/server/server-chat.cpp",
    "tools/server/server-context.cpp",
    "tools/server/server-http.cpp",
    "tools/server/server-stream.cpp",
    "common/chat.cpp",
)

_FIELD = re.compile(r'(?:new field_\w+|add_alias)\("([^"]+)"')
_READ = re.compile(
    r'json_value\(\s*(?P<a>\w+),\s*"(?P<b>[^"]+)"'
    r'|(?P<c>\w+)(?:\.|->)(?:contains|at|value|count|find)\(\s*"(?P<d>[^"]+)"'
    r'|exists_and_is_\w+\((?P<e>\w+), "(?P<f>[^"]+)"'
    r'|(?P<g>\w+)\["(?P<h>[^"]+)"\](?!\s*=[^=])'
    r'|constexpr char (?P<k>JSON_\w+_KEY)\[\] = "(?P<l>[^"]+)"'
    r'|\b(?P<i>req)\.(?:get_param|get_header_value)\("(?P<j>[^"]+)"'
)

NO_REQUEST = {
    "caps", "copy", "d", "default_template_kwargs", "default_template_src", "elem", "err", "error_data", "event_obj",
    "first_msg", "handlers", "image_url", "in_files", "inp", "input_audio", "input_video", "jmsg", "llama_params",
    "prev_msg", "rank", "second_msg", "src", "system_text",
}  # fmt: skip
"""Variables of these sources that hold no request, or parts of one that `ELSEWHERE` names by the key above them."""

_ROUTE = re.compile(r'ctx_http\.(?:get|post|del|delete_)\s*\(\s*"([^"]+)"')


def read_from_source(tree: Path) -> set[str]:
    """Names of all parameters that the server reads from a request, wherever in it they stand."""
    found: set[str] = set()
    for source in SOURCES:
        text = re.sub(r"^\s*//.*", "", (tree / source).read_text(), flags=re.MULTILINE)
        found.update(_FIELD.findall(text))
        for match in _READ.finditer(text):
            variable, name = (group for group in match.groups() if group is not None)
            if variable not in NO_REQUEST:
                found.add(name)
    return found


def routes_of_source(tree: Path) -> set[str]:
    """Paths that the server registers."""
    return set(_ROUTE.findall((tree / "tools/server/server.cpp").read_text()))


def each(name: str, *values: Any, **others: Any) -> list[Body]:
    """Bodies with these values of one parameter, and the same others in all of them."""
    return [{name: value, **others} for value in values]


_F = {"name": "f", "description": "fine"}
TOOLS = [{"type": "function", "function": _F | {"parameters": {"type": "object"}}}]
RESPONSES_TOOLS = [{"type": "function", "parameters": {"type": "object"}} | _F]
MESSAGES_TOOLS = [{"input_schema": {"type": "object"}} | _F]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
WORDS = "root ::= [a-z ]*"

PARAMETERS: dict[str, list[Body]] = {
    # what is sent back
    "verbose": each("verbose", True),
    "timings_per_token": each("timings_per_token", True),
    "stream_options": each("stream_options", {"include_usage": True}),
    "return_tokens": each("return_tokens", True),
    "return_progress": each("return_progress", True),
    "sse_ping_interval": each("sse_ping_interval", 1, -1),
    "response_fields": each("response_fields", ["content"], ["generation_settings/n_predict", "stop"]),
    "n_probs": each("n_probs", 5),
    "logprobs": each("logprobs", 5, True),
    "top_logprobs": each("top_logprobs", 5, logprobs=True),
    "post_sampling_probs": each("post_sampling_probs", True, n_probs=5),
    "echo": each("echo", True),
    "n_indent": each("n_indent", 4),
    # where an answer ends, and how many there are
    "n_predict": each("n_predict", 1, 2, 3, -1),
    "max_tokens": each("max_tokens", 1, 3, -1),
    "max_completion_tokens": each("max_completion_tokens", 1, 3),
    "max_output_tokens": each("max_output_tokens", 1, 3),
    "n": each("n", 2),
    "n_cmpl": each("n_cmpl", 2),
    "t_max_predict_ms": each("t_max_predict_ms", 1),
    "ignore_eos": each("ignore_eos", True),
    "stop": each("stop", ["I can't"], ["two "], [" "], "help"),
    "stop_sequences": each("stop_sequences", ["I can't"], ["two "]),
    # what the slot keeps of a prompt
    "cache_prompt": each("cache_prompt", False, True),
    "id_slot": each("id_slot", 0, 1),
    "n_keep": each("n_keep", 0, 1, -1),
    "n_discard": each("n_discard", 1),
    "n_cache_reuse": each("n_cache_reuse", 1, 2),
    "message_delimiters": each("message_delimiters", [{"role": "user", "delimiter": "bomb"}]),
    # samplers
    "top_k": each("top_k", 0, 1),
    "top_p": each("top_p", 0.0, 1.0),
    "min_p": each("min_p", 0.0, 1.0),
    "top_n_sigma": each("top_n_sigma", 0.0, 2.0),
    "xtc_probability": each("xtc_probability", 1.0, xtc_threshold=0.0),
    "xtc_threshold": each("xtc_threshold", 0.0, 0.9),
    "typical_p": each("typical_p", 0.1),
    "temperature": each("temperature", 0, 1.5),
    "dynatemp_range": each("dynatemp_range", 1.0),
    "dynatemp_exponent": each("dynatemp_exponent", 2.0, dynatemp_range=1.0),
    "repeat_last_n": each("repeat_last_n", 8, 0),
    "repeat_penalty": each("repeat_penalty", 2.0),
    "frequency_penalty": each("frequency_penalty", 2.0),
    "presence_penalty": each("presence_penalty", -2.0, 2.0),
    "dry_multiplier": each("dry_multiplier", 2.0),
    "dry_base": each("dry_base", 2.0, dry_multiplier=2.0),
    "dry_allowed_length": each("dry_allowed_length", 0, dry_multiplier=2.0),
    "dry_penalty_last_n": each("dry_penalty_last_n", 8, dry_multiplier=2.0),
    "dry_sequence_breakers": each("dry_sequence_breakers", ["bomb"], dry_multiplier=2.0),
    "mirostat": each("mirostat", 1, 2),
    "mirostat_tau": each("mirostat_tau", 0.1, mirostat=2),
    "mirostat_eta": each("mirostat_eta", 1.0, mirostat=2),
    "adaptive_target": each("adaptive_target", 0.5),
    "adaptive_decay": each("adaptive_decay", 0.5, adaptive_target=0.5),
    "seed": each("seed", 1),
    "min_keep": each("min_keep", 10),
    "backend_sampling": each("backend_sampling", True),
    "samplers": each("samplers", [], ["temperature"], "kt"),
    "logit_bias": each("logit_bias", [["<|im_end|>", False]], {"I": -100}, {"all ": 5, "8": False}),
    # drafts
    "speculative.n_max": each("speculative.n_max", 0, 16),
    "speculative.n_min": each("speculative.n_min", 1),
    "speculative.p_min": each("speculative.p_min", 0.0),
    "speculative.type": each("speculative.type", "ngram_simple", "none"),
    "speculative.ngram_size_n": each("speculative.ngram_size_n", 1),
    "speculative.ngram_size_m": each("speculative.ngram_size_m", 1),
    "speculative.ngram_min_hits": each("speculative.ngram_min_hits", 1),
    # forms of an answer
    "grammar": each("grammar", WORDS),
    "grammar_type": each("grammar_type", "tool_calls", grammar=WORDS),
    "grammar_lazy": each("grammar_lazy", True, grammar=WORDS, grammar_triggers=[{"type": 1, "value": "well"}]),
    "grammar_triggers": each("grammar_triggers", [{"type": 1, "value": "well"}], grammar=WORDS),
    "preserved_tokens": each("preserved_tokens", ["<|im_end|>", "bomb", "bad "]),
    "json_schema": each("json_schema", SCHEMA, {}),
    "response_format": each(
        "response_format",
        {"type": "json_object"},
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        {"type": "text"},
    ),
    "tools": each("tools", TOOLS, RESPONSES_TOOLS, MESSAGES_TOOLS, []),
    "tool_choice": [
        *each("tool_choice", "none", "auto", "required", tools=TOOLS),
        *each("tool_choice", "none", "auto", "required", tools=RESPONSES_TOOLS),
        *each("tool_choice", {"type": "none"}, {"type": "any"}, {"type": "tool", "name": "f"}, tools=MESSAGES_TOOLS),
    ],
    "parallel_tool_calls": each("parallel_tool_calls", True, False),
    "parse_tool_calls": each("parse_tool_calls", True, False),
    "chat_format": each("chat_format", 0, 1),
    "chat_parser": each("chat_parser", ""),
    # the ends of prompts, and thoughts
    "generation_prompt": each("generation_prompt", "<think>", "fine"),
    "add_generation_prompt": each("add_generation_prompt", False),
    "continue_final_message": each(
        "continue_final_message", True, "content", "reasoning_content", False, add_generation_prompt=False
    ),
    "chat_template_kwargs": each("chat_template_kwargs", {"enable_thinking": False}, {"enable_thinking": True}, {}),
    "reasoning_format": each("reasoning_format", "none", "auto", "deepseek", "deepseek-legacy"),
    "reasoning_effort": each("reasoning_effort", "none", "high"),
    "reasoning": each("reasoning", {"effort": "none"}, {"effort": "high"}),
    "reasoning_control": each("reasoning_control", True),
    "reasoning_budget_tokens": each("reasoning_budget_tokens", 0, 1, -1),
    "thinking_budget_tokens": each("thinking_budget_tokens", 0, 1),
    "thinking": each("thinking", {"type": "enabled", "budget_tokens": 1}, {"type": "disabled"}),
    "reasoning_budget_start_tag": each("reasoning_budget_start_tag", "one ", "bomb", reasoning_budget_tokens=0),
    "reasoning_budget_end_tag": each("reasoning_budget_end_tag", "fine", reasoning_budget_tokens=0),
    "reasoning_budget_end_tags": each(
        "reasoning_budget_end_tags", ["fine"], reasoning_budget_start_tag="one ", reasoning_budget_tokens=0
    ),
    "reasoning_budget_message": each(
        "reasoning_budget_message", "fine",
        reasoning_budget_start_tag="one ", reasoning_budget_end_tags=["here"], reasoning_budget_tokens=0,
    ),
    # more text beside the question
    "instructions": each("instructions", "fine"),
    "system": each("system", "fine", [{"type": "text", "text": "fine"}]),
    "metadata": each("metadata", {"user_id": "fine"}),
    "so8t": each("so8t", {"trace": True}, {"annotations": True}, {}),
    # refused under enforce
    "lora": each("lora", [{"id": 0, "scale": 1.0}], [], None),
}  # fmt: skip
"""Parameter -> bodies that are sent beside a question to every endpoint that generates."""

ELSEWHERE = {
    # the question itself, in whatever form: test_guard_turns.py and test_guard_paths.py
    "messages": "the question", "prompt": "the question", "input": "the question", "content": "the question",
    "input_prefix": "the question", "input_suffix": "the question", "input_extra": "the question",
    "text": "the question", "prompt_string": "the question",
    # of a message
    "role": "a turn, whatever it is called, unless it is system, developer or assistant (ROLES)",
    "name": "MESSAGE_FIELDS", "tool_call_id": "MESSAGE_FIELDS", "reasoning_content": "MESSAGE_FIELDS",
    "tool_calls": "text of the assistant: GIVEN of test_guard_turns.py",
    "function": "in a tool call, or in tools", "arguments": "in a tool call", "call_id": "of a tool call",
    "output": "result of a tool, a turn", "summary": "kind of an item of /v1/responses", "status": "erased",
    "refusal": "text of the assistant; the pinned server takes no such parts", "tool_use_id": "of a tool's result",
    "type": "kind of a part or of an item", "id": "of a call, an adapter or a completion",
    "image_url": "an image: the slot reads it", "input_audio": "sound: the slot reads it", "source": "an image",
    "media_type": "of an image", "data": "of an image", "url": "of an image",
    "multimodal_data": "images: the slot reads them",
    # of values that PARAMETERS sends whole
    "include_usage": "in stream_options", "effort": "in reasoning", "budget_tokens": "in thinking",
    "user_id": "in metadata", "schema": "in response_format", "scale": "in lora", "strict": "in tools",
    "description": "in tools", "parameters": "in tools", "input_schema": "in tools", "filename": "in input_extra",
    # streamed or not: every test does both
    "stream": "both",
    "previous_response_id": "an error",
    # other endpoints
    "language": "/v1/audio/transcriptions: added to the question", "action": "/v1/chat/completions/control, /slots",
    "add_special": "/tokenize", "parse_special": "/tokenize", "with_pieces": "/tokenize", "tokens": "/detokenize",
    "documents": "/rerank", "texts": "/rerank", "query": "/rerank", "top_n": "/rerank", "model": "/rerank, the router",
    "return_text": "/rerank", "embd_normalize": "/embeddings", "encoding_format": "/embeddings",
    "conversation_ids": "/v1/streams/lookup", "conv_id": "/v1/stream", "from": "/v1/stream",
    "fail_on_no_slot": "/slots", "instances": "/predict, which calls the other endpoints",
    "@requestFormat": "/predict",
    # headers
    "Authorization": "a key", "X-Api-Key": "a key", "Origin": "CORS", "Accept-Encoding": "of the page",
    "If-None-Match": "of the page",
}  # fmt: skip
"""Parameter -> why it needs no values of its own here."""

MESSAGE_FIELDS: dict[str, list[Body]] = {
    "name": each("name", "fine"),
    "tool_call_id": each("tool_call_id", "fine"),
    "reasoning_content": each("reasoning_content", "here", "<think>"),
}
"""The same for fields of the message that asks."""

ROLES = ("user", "tool", "function", "ipython", "human", "User", "ASSISTANT", "model", "")
"""Roles of a message that asks."""

ROUTES = {
    # generate: GENERATING of test_guard_parameters.py asks each of them
    "/completion": "generates", "/completions": "generates", "/v1/completions": "generates",
    "/chat/completions": "generates", "/v1/chat/completions": "generates", "/v1/responses": "generates",
    "/responses": "generates", "/v1/messages": "generates", "/infill": "generates",
    "/v1/audio/transcriptions": "the chat, for a model that hears", "/audio/transcriptions": "the same",
    # end a thought: its tokens are judged as those of any answer
    "/v1/chat/completions/control": "ends a thought",
    # tell, and generate nothing
    "/health": "tells", "/v1/health": "tells", "/metrics": "tells", "/props": "tells; changes nothing of the guard",
    "/models": "tells", "/v1/models": "tells", "/tokenize": "tells", "/detokenize": "tells", "/apply-template": "tells",
    "/chat/completions/input_tokens": "tells", "/v1/chat/completions/input_tokens": "tells",
    "/responses/input_tokens": "tells", "/v1/responses/input_tokens": "tells", "/v1/messages/count_tokens": "tells",
    "/embedding": "no text", "/embeddings": "no text", "/v1/embeddings": "no text",
    "/rerank": "no text", "/reranking": "no text", "/v1/rerank": "no text", "/v1/reranking": "no text",
    "/slots": "tells", "/v1/stream": "what was sent already", "/v1/streams/lookup": "tells",
    # of the operator, who opens them by options of the server
    "/slots/:id_slot": "--slot-save-path: a file is a cache that the server has written",
    "/lora-adapters": "refused under enforce (test_guard_adapters.py)",
    "/models/load": "the router", "/models/unload": "the router", "/models/sse": "the router",
    "/cors-proxy": "a proxy", "/tools": "tools of the server, no model",
}  # fmt: skip
"""Route of the server -> what it does to verdicts."""
