"""The events that C++ writes are those that Python reads; tests/test_docs.py holds docs/audit.md against them."""

import re
from pathlib import Path

from llama_so8t.audit.records import Event

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "llama_so8t/csrc"


def test_cpp_and_python_have_the_same_events():
    header = (CSRC / "audit/so8t-audit-chain.h").read_text()
    defined = re.findall(r'constexpr char SO8T_AUDIT_(\w+)\[\]\s*=\s*"([^"]+)";', header)
    assert dict(defined) == {event.name: event.value for event in Event}


def test_cpp_writes_no_event_by_another_name():
    """Every call that appends a line names a constant."""
    calls = re.compile(r"\b(?:append|write|keep|write_line)\(([^,()]+),")
    found = {
        argument.strip()
        for file in [*CSRC.glob("audit/*.cpp"), *CSRC.glob("server/*.cpp")]
        for argument in calls.findall(file.read_text())
        if "SO8T_AUDIT_" in argument or '"' in argument
    }
    assert {f"SO8T_AUDIT_{event.name}" for event in Event} == found
