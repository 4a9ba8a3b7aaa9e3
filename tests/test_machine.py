"""What the machine gives this process."""

import os

import pytest

from llama_so8t import machine


def test_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert machine.n_cores() == 3


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch, count, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert machine.n_cores() == expected


def test_some_memory_and_a_processor_are_found():
    assert machine.available_memory() > 1 << 20 and machine.processor()
