"""Ollama's import and its use of llama-server, played with the commands and options that Ollama 0.33 gives.

Source: server/quantization.go, llm/llama_server.go and discover/llama_server.go of Ollama. Ollama itself does
not run here.
"""

import hashlib
import http.client
import json
import os
import re

import pytest
from modelfile_grammar import parse

from llama_so8t.modelfile import write_modelfile
from llama_so8t.server_process import HOST, ServerProcess

from .test_tools import contents, run

CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
SAMPLING = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
COPY_SETS = ("general.file_type", "general.quantization_version")
"""Keys that llama-quantize writes itself."""


@pytest.fixture(scope="module")
def model(make_model):
    path = make_model("qwen3", hidden_size=256, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    (path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": CHAT_TEMPLATE, "tokenizer_class": "LlamaTokenizer"})
    )
    (path / "generation_config.json").write_text(json.dumps(SAMPLING))
    return path


@pytest.fixture(scope="module", params=[("fold", "q8_0"), ("explicit", "f16")], ids="-".join)
def modelfile(request, model, to_gguf):
    """(FROM as a path, commands) of the Modelfile of a converted model."""
    path = write_modelfile(to_gguf(model, *request.param), replace=True)
    found = parse(path.read_bytes())
    return path.parent / dict(found)["from"], found


@pytest.fixture(scope="module")
def blob(modelfile, runtime, tmp_path_factory):
    """The file that `ollama create` keeps: a copy by llama-quantize, named by its hash, without extension."""
    directory = tmp_path_factory.mktemp("blobs")
    copied = directory / "copy"
    result = run(runtime, "llama-quantize", "--allow-requantize", modelfile[0], copied, "COPY")
    assert result.returncode == 0, result.stderr
    digest = hashlib.sha256(copied.read_bytes()).hexdigest()
    return copied.rename(directory / f"sha256-{digest}")


def test_the_copy_has_every_key_and_every_tensor(modelfile, blob):
    (keys, tensors), (new_keys, new_tensors) = contents(modelfile[0]), contents(blob)
    assert [key for key in keys if key.startswith("so8t.head")]
    for key in COPY_SETS:
        keys.pop(key, None), new_keys.pop(key, None)
    assert new_keys == keys
    assert new_tensors == tensors


def test_discovery_finds_the_server_and_its_devices(runtime):
    result = run(runtime, "llama-server", "--list-devices", "--offline", "--verbose")
    assert result.returncode == 0, result.stderr
    with Server(runtime, "--no-webui", "--offline", "--verbose") as found:
        assert found.wait_for_line("system_info:")


@pytest.fixture(scope="module")
def chat(runtime, blob, modelfile):
    """The server as Ollama starts it for a file with a chat template, on a machine without GPU."""
    n_ctx = dict(modelfile[1])["num_ctx"]
    with Server(runtime, *ollama_options(blob, n_ctx)) as found:
        assert found.wait_for_health() == {"status": "ok"}
        yield found


def ollama_options(blob, n_ctx):
    return [
        "--model", blob, "--no-webui", "--offline", "-c", n_ctx, "-np", "1", "--log-verbosity", "4",
        "--no-log-prefix", "--no-log-timestamps", "--flash-attn", "auto", "-b", "512", "-ub", "512",
        "--context-shift", "--keep", "4", "--load-mode", "none", "-t", "1", "--split-mode", "none",
        "--cache-type-k", "f16", "--cache-type-v", "f16",
    ]  # fmt: skip


def test_the_load_log_has_no_words_that_ollama_takes_for_errors(chat):
    assert chat.wait_for_line("model loaded")
    bad = [line for line in chat.log() if re.search(r"error:|Error:|error loading model|GGML_ASSERT", line)]
    assert not bad


def test_api_chat_streams_lines_that_ollama_reads(chat, modelfile):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "A rotation keeps"}]
    prompt = chat.post("/apply-template", {"messages": messages})["prompt"]
    assert chat.post("/tokenize", {"content": prompt})["tokens"]
    options = request_options(modelfile[1])
    body = {"messages": messages, "stream": True, "cache_prompt": True, "max_tokens": 8, **options}
    chunks = stream(chat, "/v1/chat/completions", body)
    last = next(chunk for chunk in chunks if any(choice.get("finish_reason") for choice in chunk["choices"]))
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert last["timings"]["predicted_n"] >= 1 and last["timings"]["prompt_n"] >= 1


def test_api_generate_streams_lines_that_ollama_reads(chat, modelfile):
    body = {"prompt": "The quick brown fox", "stream": True, "cache_prompt": True, "n_predict": 8, "n_keep": 4}
    body |= request_options(modelfile[1])
    chunks = stream(chat, "/completion", body)
    assert chunks[-1]["stop"] is True
    assert chunks[-1]["timings"]["predicted_n"] >= 1
    # a follow-up turn evaluates its new part only
    again = stream(chat, "/completion", body | {"prompt": "The quick brown fox jumps over the lazy dog"})
    assert again[-1]["timings"]["cache_n"] > 0


def test_a_go_template_of_ollama_is_served_too(runtime, blob):
    with Server(runtime, *ollama_options(blob, 512), "--no-jinja", "--chat-template", "chatml") as found:
        assert found.wait_for_health() == {"status": "ok"}
        assert found.post("/completion", {"prompt": "The head decides", "n_predict": 4})["tokens_predicted"] >= 1


def request_options(commands):
    """Parameters of the Modelfile as Ollama puts them into a request."""
    values = dict(commands)
    assert {name: float(values[name]) for name in SAMPLING} == SAMPLING
    stops = [value for name, value in commands if name == "stop"]
    assert stops == ["</s>"]
    return {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "stop": stops, "seed": 1}


def stream(server, path, body):
    """Every chunk of a streamed answer; only lines that Ollama's reader accepts may occur."""
    chunks = []
    for line in server.lines(path, body):
        if line == "" or line.startswith(":") or line == "data: [DONE]":
            continue
        assert line.startswith("data: "), line
        chunks.append(json.loads(line.removeprefix("data: ")))
    assert chunks
    return chunks


class Server(ServerProcess):
    """llama-server as Ollama starts it, with the library path that it sets, and waits for it afterwards."""

    def __init__(self, runtime, *options):
        super().__init__(runtime / "llama-server", *options, environment=os.environ | {"LD_LIBRARY_PATH": str(runtime)})

    def is_ready(self):
        return True

    def log(self):
        return self.output().splitlines()

    def wait_for_line(self, words):
        return self.wait_for(lambda: any(words in line for line in self.log()))

    def wait_for_health(self):
        def healthy():
            try:
                answer = self._request("GET", "/health")
            except OSError:
                return None  # not listening yet
            body = json.loads(answer.read())
            return body if answer.status == 200 else None  # 503 while it loads

        return self.wait_for(healthy)

    def post(self, path, body):
        answer = self._request("POST", path, body)
        text = answer.read().decode()
        assert answer.status == 200, text
        return json.loads(text)

    def lines(self, path, body):
        answer = self._request("POST", path, body)
        assert answer.status == 200, answer.read()
        return [line.decode().rstrip("\r\n") for line in answer]

    def _request(self, method, path, body=None):
        connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()
