"""The same few hundred spoiled files for every Python reader, each time; `make fuzz` takes others, for minutes."""

import pytest
from hypothesis import HealthCheck, given, settings
from targets import TARGETS

N_FILES = {"config": 25}
"""Of the slow ones; of others 100."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_spoiled_file_is_read_or_refused_in_one_line(name, pinned_tree):
    target = TARGETS[name]

    @settings(
        max_examples=N_FILES.get(name, 100), derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(target.inputs())
    def check(data: bytes) -> None:
        target.check(data)

    check()
