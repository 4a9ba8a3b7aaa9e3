"""A model without heads is served as llama.cpp serves it, whatever is set for SO8T; without a model, the same."""

import json
import os
import subprocess
import time
from itertools import chain

import pytest

from llama_so8t.conversion.convert import convert
from llama_so8t.conversion.options import ConvertOptions

from .guard_server import ENDPOINTS, SMALL, Server
from .test_tools import contents

PROMPT = "The quick brown fox"
POLICY = {
    "LLAMA_ARG_SO8T_POLICY": "enforce", "LLAMA_ARG_SO8T_THINK": "monitor",
    "LLAMA_ARG_SO8T_THRESHOLD": "safety/unsafe=0.5",
    "LLAMA_ARG_SO8T_DEBOUNCE": "2", "LLAMA_ARG_SO8T_HOLDBACK": "3", "LLAMA_ARG_SO8T_ON_REFUSE": "stop",
    "LLAMA_ARG_SO8T_REFUSAL": "No.", "LLAMA_ARG_SO8T_ESCALATION": "Ask.", "LLAMA_ARG_SO8T_ESCALATION_WAIT": "5",
}  # fmt: skip
AUDIT = ("AUDIT_TEXT", "AUDIT_MAX_SIZE", "AUDIT_ON_ERROR")


def environment(directory, **other):
    """Every variable there is; files in a directory of the test."""
    (directory / "policy.json").write_text("no policy, and no JSON: an error for a model with heads only")
    return (
        POLICY
        | {
            "LLAMA_ARG_SO8T_POLICY_FILE": str(directory / "policy.json"),
            "LLAMA_ARG_SO8T_AUDIT": str(directory / "audit.jsonl"),
            "LLAMA_ARG_SO8T_AUDIT_KEY": str(directory / "audit.key"),
            "LLAMA_ARG_SO8T_AUDIT_CHECKPOINT": str(directory / "checkpoint"),
            "LLAMA_ARG_SO8T_AUDIT_MAX_SIZE": "1M",
            "LLAMA_ARG_SO8T_AUDIT_ON_ERROR": "refuse",
            "LLAMA_ARG_SO8T_AUDIT_TEXT": "1",
            "LLAMA_ARG_SO8T_JSON": str(directory / "verdicts.jsonl"),
        }
        | other
    )


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def plain(request, make_model):
    """A base model of the usual architecture, without rotations in the graph and without heads."""
    model = make_model(request.param)
    file = model.parent / "plain.gguf"
    convert(ConvertOptions(model=model, outfile=file, outtype="f32", arch="stock", progress=False,
                           drop_sites=("qk",) if request.param == "qwen3" else ()))  # fmt: skip
    keys, tensors = contents(file)
    assert keys["general.architecture"] == request.param
    assert [name for name in (*keys, *tensors) if "so8t" in name] == ["so8t.rotation.folded"]  # for its adapters
    return file


@pytest.fixture(scope="module")
def pair(runtime, plain, tmp_path_factory):
    """The same model with nothing set, and with everything."""
    directory = tmp_path_factory.mktemp("inert")
    flags = ["-m", plain, *SMALL, "--metrics"]
    with Server(runtime / "llama-server", *flags) as bare:
        before = os.environ.copy()
        os.environ.update(environment(directory))
        try:
            loaded = Server(runtime / "llama-server", *flags)
        finally:
            os.environ.clear()
            os.environ.update(before)
        with loaded:
            yield bare, loaded, directory


def steady(value):
    """A reply without what differs between two replies of one server: times, and identifiers by chance."""
    if isinstance(value, dict):
        changing = ("id", "created", "created_at", "completed_at", "timings", "model", "item_id", "generation_settings")
        return {k: steady(v) for k, v in value.items() if k not in changing}
    return [steady(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ENDPOINTS)
def test_answers_are_byte_for_byte_those_without_any_setting(pair, name):
    bare, loaded, _ = pair
    endpoint = ENDPOINTS[name]
    options = {"temperature": 0, "max_tokens": 8, "max_output_tokens": 8, "n_predict": 8, "cache_prompt": False}
    for streamed in (False, True):
        one, other = ((endpoint.ask_stream if streamed else endpoint.ask)(s, PROMPT, **options) for s in (bare, loaded))
        assert json.dumps(steady(one.raw)) == json.dumps(steady(other.raw))
        assert "so8t" not in json.dumps(other.raw) and one.text
    body = endpoint.body(PROMPT) | options | {"so8t": {"trace": True, "other": 1}}
    assert loaded.request("POST", endpoint.path, body).status == 200  # what llama.cpp does with a key it does not know


def test_the_endpoints_say_that_there_are_no_heads(pair):
    _, loaded, directory = pair
    assert loaded.get("/so8t") == {"heads": {}}
    assert loaded.get("/so8t/escalations") == {"escalations": [], "wait": 0}
    for path, body in (
        ("/v1/moderations", {"input": "a"}),
        ("/so8t/judge", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        reply = loaded.request("POST", path, body)
        assert reply.status == 400 and "no heads" in reply.json()["error"]["message"]
    assert loaded.request("GET", "/so8t/audit").status == 404
    assert "so8t" not in loaded.get("/props")
    assert b"so8t" not in loaded.request("GET", "/metrics").body
    assert loaded.request("GET", "/so8t/ui").status == 200
    assert sorted(path.name for path in directory.iterdir()) == ["policy.json"]
    assert "error" not in loaded.output().lower().replace("audit-on-error", "")


@pytest.mark.parametrize("tool", ["llama-completion", "llama-cli"])
def test_the_tools_print_what_they_print_without_any_setting(runtime, plain, tmp_path, tool):
    chat = ["-no-cnv"] if tool == "llama-completion" else ["-st"]
    command = [runtime / tool, "-m", plain, *SMALL, *chat, "-p", PROMPT, "-n", "8", "--temp", "0",
               "--no-display-prompt", *(["--no-show-timings"] if tool == "llama-cli" else [])]  # fmt: skip

    def output(env):
        result = subprocess.run(
            command, env=os.environ | env, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False
        )
        assert result.returncode == 0, result.stderr
        return result

    one, other = output({}), output(environment(tmp_path))
    answers = [result.stdout.partition(PROMPT.encode())[2] or result.stdout for result in (one, other)]  # before it
    assert answers[0] == answers[1] and answers[0].strip()  # a wheel turns
    (line,) = [line for line in other.stderr.splitlines() if b"so8t" in line]
    assert b"the policy is enforce, but the model has no heads, so nothing is enforced" in line
    assert {path.name for path in tmp_path.iterdir()} == {"policy.json", "verdicts.jsonl"}
    assert (tmp_path / "verdicts.jsonl").read_text() == ""


def test_devices_are_listed_as_ollama_asks(runtime, tmp_path):
    """Ollama's discovery: no model, the environment of `ollama serve`, exit code 0."""
    result = subprocess.run(
        [runtime / "llama-server", "--list-devices", "--offline", "--verbose"], env=os.environ | environment(tmp_path),
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "error:" not in result.stderr and "Available devices" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) in (["policy.json"], ["policy.json", "verdicts.jsonl"])


def test_a_server_without_a_model_starts_as_ollama_starts_it(runtime, tmp_path):
    """Ollama reads stderr until "system_info:" and kills it."""
    log = tmp_path / "log"
    files = {
        "LLAMA_CACHE": "cache",
        "LLAMA_ARG_SO8T_AUDIT": "audit-{model}.jsonl",
        "LLAMA_ARG_SO8T_AUDIT_CHECKPOINT": "checkpoint-{model}",
    }
    env = os.environ | environment(tmp_path, **{name: str(tmp_path / file) for name, file in files.items()})
    with log.open("wb") as out:
        process = subprocess.Popen(
            [runtime / "llama-server", "--port", "0", "--host", "127.0.0.1", "--no-webui", "--offline", "--verbose"],
            env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        for _ in range(300):
            if "system_info:" in log.read_text(errors="replace"):
                break
            assert process.poll() is None, log.read_text(errors="replace")
            time.sleep(0.1)
        else:
            pytest.fail("no system_info:")
    finally:
        process.kill()
        process.wait()
    assert "error:" not in log.read_text(errors="replace")
    assert not list(tmp_path.glob("audit*"))


def test_every_flag_has_a_variable_that_does_the_same(runtime, guard_file, tmp_path):
    """On a model with heads: the policy in force is the one of the environment."""
    flags = {name.removeprefix("LLAMA_ARG_SO8T_"): value for name, value in POLICY.items()}
    names = {"--so8t-" + name.lower().replace("_", "-"): value for name, value in flags.items()}
    env = os.environ.copy()
    os.environ.update(POLICY, LLAMA_ARG_SO8T_AUDIT=str(tmp_path / "audit.jsonl"), LLAMA_ARG_SO8T_AUDIT_TEXT="1",
                      LLAMA_ARG_SO8T_AUDIT_KEY=str(tmp_path / "k"), LLAMA_ARG_SO8T_AUDIT_CHECKPOINT=str(tmp_path / "c"),
                      LLAMA_ARG_SO8T_AUDIT_MAX_SIZE="64K", LLAMA_ARG_SO8T_AUDIT_ON_ERROR="continue")  # fmt: skip
    try:
        by_env = Server(runtime / "llama-server", "-m", guard_file, *SMALL)
    finally:
        os.environ.clear()
        os.environ.update(env)
    with (
        by_env,
        Server(runtime / "llama-server", "-m", guard_file, *SMALL, *chain.from_iterable(names.items())) as by_flag,
    ):
        policy = by_env.get("/so8t")["policy"]
        assert policy == by_flag.get("/so8t")["policy"]
        assert policy["refusal"] == "No." and policy["escalation"] == "Ask." and policy["escalation_wait"] == 5
        assert (policy["mode"], policy["think"], policy["on_refuse"], policy["holdback"]) == (
            "enforce",
            "monitor",
            "stop",
            3,
        )
        assert (
            policy["heads"]["safety"]["thresholds"]["unsafe"] == 0.5 and policy["heads"]["authority"]["debounce"] == 2
        )
        ENDPOINTS["chat"].ask(by_env, "go")
        lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert lines[-1]["prompt"]["text"] == "go"
        assert (tmp_path / "k").exists() and (tmp_path / "c").exists()
    help_text = subprocess.run([runtime / "llama-server", "--help"], capture_output=True, text=True, check=True).stdout
    for flag in {line.split()[0].rstrip(",") for line in help_text.splitlines() if line.startswith("--so8t-")}:
        variable = "LLAMA_ARG_" + flag.removeprefix("--").upper().replace("-", "_")
        assert variable in help_text, flag
