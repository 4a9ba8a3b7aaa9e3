"""Clients in JavaScript, as their users call them: what they make of a refusal is what docs/clients.md says."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from required import absent

from .guard_rules import REFUSAL, Policy
from .guard_server import HOST

POLICY = Policy(mode="enforce", holdback=1)
KEY = "a key of the tests"
PACKAGES = ("openai@6.49.0", "@anthropic-ai/sdk@1.14.0", "ai@6.0.326", "@ai-sdk/openai@3.0.141",
            "@ai-sdk/openai-compatible@2.0.92")  # fmt: skip


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    """clients.mjs beside its packages."""
    if not (shutil.which("npm") and shutil.which("node")):
        absent("npm", "npm is not installed: no clients in JavaScript")
    directory = tmp_path_factory.mktemp("clients")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(directory), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        absent("npm", f"npm install failed: {done.stderr.strip()[-200:]}")
    return Path(shutil.copy(Path(__file__).with_name("clients.mjs"), directory))


def ask(script: Path, server, prompt: str) -> dict[str, list]:
    env = os.environ | {"BASE": f"http://{HOST}:{server.port}", "KEY": KEY, "PROMPT": prompt}
    done = subprocess.run(["node", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expected(place: str) -> dict[str, list]:
    """Of the prompt "go", whose answer is refused after "one two "."""
    content, refusal = (None if place == "refusal" else REFUSAL), (None if place == "content" else REFUSAL)
    twice = (content or "") + (refusal or "")  # AI SDK takes a refusal for more text
    rest = "" if content is None else f"\n\n{content}"
    text = REFUSAL if place == "content" else ""
    found = {
        "openai": [content, refusal, "content_filter"],
        "openai stream": [f"one two {rest}", refusal, "content_filter"],
        "openai responses": [text, refusal, "incomplete"],
        "openai responses stream": [f"one two {text}", refusal, "incomplete"],
        "anthropic": [REFUSAL, REFUSAL, "refusal"],
        "anthropic stream": [f"one two |{REFUSAL}", REFUSAL, "refusal"],
        "@ai-sdk/openai responses": [REFUSAL, None, "content-filter"],
        "@ai-sdk/openai responses stream": [f"one two {REFUSAL}", None, "content-filter"],
    }
    for name in ("@ai-sdk/openai", "@ai-sdk/openai-compatible"):
        found[name] = [twice, None, "content-filter"]
        found[f"{name} stream"] = [f"one two {rest}{refusal or ''}", None, "content-filter"]
    return found


@pytest.mark.parametrize("place", ["content", "refusal", "both"])
def test_clients_show_what_the_page_says(serve, guard_file, script, place):
    server = serve(guard_file, *POLICY.flags, "--so8t-refusal-in", place, key=KEY)
    assert ask(script, server, "go") == expected(place)
    harmless = ask(script, server, "fine")
    assert set(harmless) == set(expected(place))
    assert {(text, refusal) for text, refusal, _ in harmless.values()} == {("all is well here", None)}
