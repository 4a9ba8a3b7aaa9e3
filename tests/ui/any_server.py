"""Checks of the page that hold for any server whose model has heads and answers "hello" with some text.

A test module asks another server by its own fixture ``server``:

    from tests.ui.any_server import AnyServer
    from tests.ui.browser import browser, page  # noqa: F401

    class TestPage(AnyServer):
        @pytest.fixture(scope="class")
        def server(self):
            yield SimpleNamespace(url="http://127.0.0.1:8080/so8t/ui", key=None)
"""

import json
import re
import urllib.request
from typing import Any

import pytest
from selenium.webdriver import Keys

from tests.ui.fake_server import CSP, PAGE

DONE = "!document.querySelector('[aria-busy]') && document.querySelectorAll('.answer').length"

CONTRAST = """(() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (colors) => {
    pen.clearRect(0, 0, 1, 1);
    for (const color of colors) { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.getClientRects().length || node.closest(":disabled, script")) continue;
    const grounds = [];
    for (let e = node; e; e = e.parentElement) grounds.unshift(getComputedStyle(e).backgroundColor);
    const behind = light(paint(grounds)), text = light(paint([...grounds, getComputedStyle(node).color]));
    const ratio = (Math.max(behind, text) + 0.05) / (Math.min(behind, text) + 0.05);
    if (ratio < 4.5) bad.push([node.className, walk.currentNode.data.slice(0, 30), ratio]);
  }
  return bad;
})()"""
"""Texts whose contrast is below 4.5:1 (WCAG 2.2, 1.4.3), with the formula of that page."""

UNNAMED = """[...document.querySelectorAll("input, select, textarea, button")]
  .filter((e) => !e.labels?.length && !e.getAttribute("aria-label") && !e.textContent.trim()).map((e) => e.outerHTML)"""

OVERFLOW = "document.scrollingElement.scrollWidth - innerWidth"


def fetch(server: Any, path: str) -> Any:
    """What the server says itself."""
    request = urllib.request.Request(server.url.removesuffix("/so8t/ui") + path)
    if server.key:
        request.add_header("Authorization", f"Bearer {server.key}")
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def ask(page: Any, question: str) -> None:
    """Sends a question and waits for the end of the answer."""
    before = page.run("document.querySelectorAll('.answer').length")
    page.type("#prompt", question)
    page.press(Keys.ENTER)
    page.wait(f"{DONE} > {before}")


class AnyServer:
    def test_the_policy_is_the_servers(self, page, server):
        info = fetch(server, "/so8t")
        page.wait("!!info")
        shown = page.run("document.getElementById('policy-body').textContent")
        assert page.text("#mode") == info["policy"]["mode"]
        assert info["policy"]["sha256"] in shown and info["model"]["name"] in shown
        rows = page.run("[...document.querySelectorAll('#policy tbody tr')].map((row) => row.innerText.split('\\t'))")
        expected = [
            (label, action, "if largest" if head["rule"] == "argmax" else f"{head['thresholds'][label]:.3f}")
            for head in info["heads"].values()
            for label, action in zip(head["labels"], head["actions"], strict=True)
        ]
        assert [(row[1], row[2].split()[-1], row[3]) for row in rows] == expected

    def test_an_answer_has_its_verdict_and_its_tokens(self, page, server):
        ask(page, "hello")
        heads = fetch(server, "/so8t")["heads"]
        rows = page.run("[...document.querySelectorAll('.verdict tbody tr')].map((row) => row.cells[0].textContent)")
        assert {row.split(": ")[1] for row in rows} <= set(heads) and any(row.startswith("prompt") for row in rows)
        assert re.search("allow|escalate|refuse", page.text(".verdict .mark"))
        risks = page.run(
            "[...document.querySelectorAll('.answer .token')].map((t) => +t.style.getPropertyValue('--risk'))"
        )
        assert risks and all(0 <= risk <= 1 for risk in risks)

    def test_a_token_shows_its_probabilities(self, page, server):
        ask(page, "hello")
        page.run("document.querySelector('.answer .token').focus()")
        shown = page.text("#tip")
        labels = [label for head in fetch(server, "/so8t")["heads"].values() for label in head["labels"]]
        assert any(label in shown for label in labels) and re.search(r"\d\.\d{3}", shown)

    def test_the_audit_log_is_shown_newest_first(self, page, server):
        if fetch(server, "/so8t")["audit"] is None:
            pytest.skip("the server writes no audit log")
        page.wait("document.querySelectorAll('.record').length")
        shown = page.run("[...document.querySelectorAll('.record')].map((r) => parseInt(r.innerText))")
        lines = [line["seq"] for line in fetch(server, "/so8t/audit?tail=50")["lines"]]
        assert shown == sorted(shown, reverse=True) and set(shown) <= set(lines)

    def test_the_escalations_are_listed(self, page, server):
        page.wait("!!document.getElementById('escalations-note').textContent")
        known = {entry["id"] for entry in fetch(server, "/so8t/escalations")["escalations"]}
        assert page.run("document.querySelectorAll('.entry').length") == len(known)

    def test_a_wrong_key_is_asked_for_again(self, page, server):
        if not server.key:
            pytest.skip("the server has no key")
        page.type("#key", "wrong")
        page.press(Keys.TAB)
        page.wait("document.getElementById('notice').textContent === 'The server does not accept this API key.'")
        page.wait("document.activeElement.id === 'key'")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [380, 1400])
    def test_it_is_legible_named_and_not_wider_than_the_window(self, page, scheme, width):
        page.scheme(scheme)
        page.size(width, 800)
        ask(page, "hello")
        page.run("document.querySelector('.answer .token').focus()")
        assert page.run(UNNAMED) == []
        for part in ("chat", "escalations", "policy", "audit") if width < 1000 else ("",):
            if part:
                page.click(f"[data-show={part}]")
                page.wait(f"document.getElementById('{part}').getClientRects().length")
            assert page.run(OVERFLOW) <= 0, part
            assert page.run(CONTRAST) == [], part

    def test_the_servers_content_security_policy_is_the_strict_one(self, server):
        with urllib.request.urlopen(server.url, timeout=60) as response:
            assert response.read() == PAGE.read_bytes()
            rules = response.headers["Content-Security-Policy"].split(";")
        assert {rule.strip() for rule in rules} == set(CSP.split("; "))

    @pytest.mark.parametrize(
        "attack",
        [
            "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))",
            "document.body.setAttribute('onfocus', 'window.hacked = 1')",
            "document.body.innerHTML = '<img src=x>'",
            "document.body.setAttribute('style', 'display: none')",
            "window.open('javascript:1', '_self')",
            "new Image().src = 'http://example.org/x.png'",
            "fetch('http://example.org').catch(() => 0)",
        ],
    )
    def test_the_browser_enforces_it(self, page, attack):
        page.run(f"(async () => {{ {attack} }})().catch(() => 0)")
        assert any("The action has been blocked" in problem for problem in page.problems())
        assert page.run("window.hacked") is None and page.run("document.images.length") == 0
