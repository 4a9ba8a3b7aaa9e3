"""The files of monitoring/: each query is about metrics, labels and values that llama-server has."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .guard_server import CHAT, SMALL, Server

MONITORING = Path(__file__).parents[2] / "monitoring"
OF_PROMETHEUS = {"instance"}
"""Labels that Prometheus adds itself."""


def queries() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every panel, variable and rule."""
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]
    for group in yaml.safe_load((MONITORING / "prometheus-alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


QUERIES = list(queries())


@pytest.fixture(scope="module")
def samples(runtime, guard_file) -> dict[str, dict[str, set[str]]]:
    """Metric -> label -> its values, of a server that has answered."""
    flags = (*SMALL, "--metrics", "--so8t-policy", "enforce", "--so8t-otlp", "http://127.0.0.1:9")
    with Server(runtime / "llama-server", "-m", guard_file, *flags) as server:
        CHAT.ask(server, "go")
        text = server.request("GET", "/metrics").body.decode()
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels = re.fullmatch(r"([a-z_:0-9]+)(?:\{(.*)\})? \S+", line).groups()
            for label, value in re.findall(r'([a-z]+)="([^"]*)"', labels or ""):
                found[name][label].add(value)
            found[name]  # one without labels, too
    assert len(found) > 15
    return found


def test_there_are_panels_and_rules():
    assert len(QUERIES) > 25
    rules = yaml.safe_load((MONITORING / "prometheus-alerts.yaml").read_text())["groups"][0]["rules"]
    assert all(set(rule) <= {"alert", "expr", "for", "labels", "annotations"} for rule in rules)
    assert {rule["labels"]["severity"] for rule in rules} == {"critical", "warning"}
    assert all(rule["annotations"]["summary"] for rule in rules)


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_a_query_asks_for_what_there_is(samples, where, query):
    metrics = re.findall(r"(llamacpp:[a-z0-9_]+)(\{[^}]*\})?", query)
    assert metrics, query
    labels = set()
    for name, matchers in metrics:
        assert name in samples, name
        labels |= set(samples[name])
        for label, sign, value in re.findall(r'([a-z]+)(=~|!=|=)"([^"]*)"', matchers):
            assert label in OF_PROMETHEUS or value in samples[name][label], (name, label, sign, value)
    for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        assert {label.strip() for label in grouped.split(",")} <= labels | OF_PROMETHEUS, query


def test_panels_do_not_overlap_and_name_their_data_source():
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {"${datasource}"}
