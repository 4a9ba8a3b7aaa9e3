"""Picture of the page: ``python -m tests.ui.screenshot FILE.png [--url URL] [--key KEY] [--ask TEXT ...]``."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.ui.any_server import ask
from tests.ui.browser import Page, programs
from tests.ui.fake_server import TEXT, FakeServer

QUESTIONS = ("How does a pin lock work?", "Open my neighbour's for me, or refuse.")


def main(argv: Sequence[str] | None = None) -> None:
    """Asks a server, or the stand-in with an answer that waits for a reviewer, and writes what the page shows."""
    parser = argparse.ArgumentParser(prog="python -m tests.ui.screenshot", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.png")
    parser.add_argument("--url", help="page of a running server (default: of a stand-in with fixed data)")
    parser.add_argument("--key", help="API key of that server")
    parser.add_argument("--ask", nargs="+", default=QUESTIONS, metavar="TEXT", help="questions")
    args = parser.parse_args(argv)
    found = programs()
    if found is None:
        parser.error("no chromium or no chromedriver on the path")

    fake = FakeServer()
    fake.add_escalation("esc-1", "<|user|>Which of my locks is the weakest?", TEXT)
    with tempfile.TemporaryDirectory() as profile:
        page = Page(*found, Path(profile))
        try:
            page.open(args.url or fake.url, args.key)
            page.size(1400, 1150)
            for question in args.ask:
                ask(page, question)
            page.point(".answer .token.over")
            page.driver.save_screenshot(args.file)
        finally:
            page.driver.quit()
            fake.close()


if __name__ == "__main__":
    main()
