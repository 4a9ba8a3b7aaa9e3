"""A browser for the page of the server, and the stand-in for the server."""

import os

import pytest

from tests.ui.devtools import Browser, find_chromium
from tests.ui.fake_server import FakeServer


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium. SO8T_REQUIRE=browser makes its absence a failure."""
    program = find_chromium()
    if program is None:
        missing = pytest.fail if "browser" in os.environ.get("SO8T_REQUIRE", "") else pytest.skip
        missing("no Chromium on the path; on Debian: apt-get install chromium")
    running = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture
def server():
    """What serves the page: an object with ``url`` (of the page) and ``key`` (or None). Override it for another one."""
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def page(browser, server):
    """The browser with the page open and the key entered. Fails where the page threw or broke the server's CSP."""
    browser.open(server.url)
    browser.size(1400, 900)
    browser.scheme("light")
    if server.key:
        browser.type("#key", server.key)
        browser.press("Tab")
    yield browser
    browser.run("0")  # what was said before is noted now
    # refused requests are logged by the browser itself, as "network"
    assert [problem for problem in browser.problems if not problem.startswith("network: ")] == []
