"""Constants of ggml that Python holds by hand, against the headers of the pinned tree and of our own C++."""

import re
from pathlib import Path

import pytest

from llama_so8t.bindings import library, session

SESSION_HEADER = Path(__file__).parent.parent / "llama_so8t/csrc/python/so8t-session.h"


@pytest.fixture
def ggml(pinned_tree):
    """Value of an enumerator of ggml.h."""
    header = (pinned_tree / "ggml/include/ggml.h").read_text()

    def value(name: str) -> int:
        (found,) = re.findall(rf"^\s*{name}\s*=\s*(\d+)\s*,", header, re.M)
        return int(found)

    return value


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0"])
def test_types_are_those_of_ggml(ggml, name):
    assert getattr(session, name) == ggml(f"GGML_TYPE_{name}")


def test_the_hint_of_a_rotation_is_that_of_ggml(ggml):
    assert session.SO8_HINT == ggml("GGML_HINT_SRC0_IS_SO8")


def test_the_version_of_a_session_is_that_of_its_header():
    assert library.VERSION == int(re.search(r"#define SO8T_SESSION_VERSION (\d+)", SESSION_HEADER.read_text())[1])
