"""The page of llama-server in a browser, on the server itself."""

# ruff: noqa: F811, the fixtures of the page are used by name

from types import SimpleNamespace

import pytest
from scripted_model import Head, scripted_gguf
from selenium.webdriver import Keys
from selenium.webdriver.support.select import Select

from tests.ui.any_server import AnyServer, ask, fetch
from tests.ui.browser import browser, page  # noqa: F401

from .guard_server import SMALL, Server

KEY = "secret"

SCRIPTS = {
    "hello": ["good ", "day ", "to ", "you"],
    "go": ["one ", "two ", "bad ", "three"],
    "ask": ["may ", "risk ", "more ", "end"],
}

HEADS = {
    "safety": Head(["safe", "unsafe"], ["allow", "refuse"], [0.5, 0.9], tokens={"bad ": {"unsafe": 0.97}}),
    "authority": Head(["handle", "escalate"], ["allow", "escalate"], [0.5, 0.6], tokens={"risk ": {"escalate": 0.8}}),
}


@pytest.fixture(scope="module")
def running(serve, tmp_path_factory, pinned_tree):
    directory = tmp_path_factory.mktemp("page")
    return serve(
        scripted_gguf(directory / "model", SCRIPTS, HEADS), "--so8t-policy", "enforce", "--so8t-holdback", "1",
        "--so8t-escalation-wait", "60", "--so8t-audit", directory / "audit.jsonl", key=KEY,
    )  # fmt: skip


@pytest.fixture
def server(running):
    return SimpleNamespace(url=f"http://127.0.0.1:{running.port}/so8t/ui", key=KEY)


class TestPage(AnyServer):
    """What holds for any server, of this one."""


def test_a_refusal_is_shown_with_the_token_that_triggered(page, server):
    ask(page, "go")
    assert page.run("document.querySelector('.answer').innerText").count("I can't help with that.") == 1
    assert page.text(".verdict .mark").endswith("refuse")
    delivered = page.run("[...document.querySelectorAll('.answer .token:not(.withheld)')].map((t) => t.textContent)")
    assert "bad " not in delivered and delivered[:2] == ["one ", "two "]


@pytest.mark.parametrize("button, outcome, text", [
    ("Allow", "allowed", "may risk more end"), ("Deny", "denied", "I can't help with that."),
])  # fmt: skip
def test_a_reviewer_decides_in_the_page(page, server, button, outcome, text):
    page.type("#reviewer", "Ada")
    page.type("#prompt", "ask")
    page.press(Keys.ENTER)
    page.wait("document.querySelectorAll('.entry:not(.done)').length")
    buttons = "[...document.querySelectorAll('.entry:not(.done) button')]"
    page.run(f"{buttons}.find((b) => b.innerText == '{button}').click()")
    page.wait("!document.querySelector('[aria-busy]') && document.querySelectorAll('.answer').length")
    assert text in " ".join(page.run("document.querySelector('.answer').innerText").split())
    newest = fetch(server, "/so8t/escalations")["escalations"][-1]
    assert (newest["status"], newest["reviewer"]) == (outcome, "Ada")
    events = [line for line in fetch(server, "/so8t/audit?tail=50")["lines"] if line["event"] == "escalation"]
    assert (events[-1]["status"], events[-1]["reviewer"]) == (outcome, "Ada")


def test_the_page_of_a_router_is_that_of_each_model(browser, runtime, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for name in ("first", "second"):
        (models / f"{name}.gguf").write_bytes(scripted_gguf(tmp_path / name, SCRIPTS, HEADS).read_bytes())
    flags = (*SMALL, "--so8t-policy", "enforce", "--so8t-escalation-wait", "60")
    with Server(runtime / "llama-server", "--models-dir", models, *flags) as router:
        page = browser
        page.open(f"{router.url}/so8t/ui")
        page.wait("document.getElementById('mode').textContent === 'unloaded'")
        Select(page.point("#models")).select_by_value("second")
        ask(page, "hello")
        page.wait("document.getElementById('mode').textContent === 'enforce'")
        assert {name: model["status"] for name, model in router.get("/so8t")["models"].items()} == {
            "first": "unloaded", "second": "loaded",
        }  # fmt: skip
        page.type("#reviewer", "Ada")
        page.type("#prompt", "ask")
        page.press(Keys.ENTER)
        page.wait("document.querySelectorAll('.entry').length")
        assert page.text(".entry h3").endswith("ask") and page.text(".entry .state").startswith("second, esc-")
        page.click("[data-action=deny]")
        page.wait("document.querySelector('.entry .state').innerText.endsWith('denied by Ada')")
