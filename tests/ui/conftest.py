"""The page in a browser, and the stand-in for the server."""

import pytest

from tests.ui.browser import browser, page  # noqa: F401
from tests.ui.fake_server import FakeServer


@pytest.fixture
def server():
    """What serves the page: an object with ``url`` (of the page) and ``key`` (or None)."""
    fake = FakeServer()
    yield fake
    fake.close()
