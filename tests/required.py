"""What a test needs and a machine may lack: skipped, or a failure where SO8T_REQUIRE names it (docs/env-vars.md)."""

import os
from typing import NoReturn

import pytest


def absent(name: str, reason: object) -> NoReturn:
    """Ends a test or fixture that lacks ``name``; ``reason`` says what is missing and how to get it."""
    (pytest.fail if name in os.environ.get("SO8T_REQUIRE", "").split(",") else pytest.skip)(str(reason))
