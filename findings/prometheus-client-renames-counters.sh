#!/usr/bin/env bash
# One would expect: prometheus_client gives back the names of the samples it parses, and its two parsers agree on a
# counter.
# What happens: a counter "decisions" of the text format comes back as a sample "decisions_total", a name that the
# server never wrote, so a query by the name from the server's page finds nothing. The OpenMetrics parser of the same
# package refuses llama.cpp's counters, whose TYPE line names them with _total ("Clashing name"); it wants the name
# without _total there and with it in the sample.
# Versions: prometheus_client 0.26.0.
# Why it matters: tests of exporters compare by name; a scraper that falls back from one parser to the other renames a
# metric.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check prometheus_client==0.26.0
venv/bin/python - <<'PY'
import importlib.metadata as metadata

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

print("prometheus_client", metadata.version("prometheus_client"))
short = "# TYPE decisions counter\ndecisions 3\n"
llama = "# TYPE llamacpp:prompt_tokens_total counter\nllamacpp:prompt_tokens_total 5\n"
names = [sample.name for family in plain(short + llama) for sample in family.samples]
print("text format :", names)
errors = []
for text in (short, llama):
    try:
        print("OpenMetrics :", [sample.name for family in openmetrics(text + "# EOF\n") for sample in family.samples])
    except ValueError as error:
        errors.append(str(error))
        print("OpenMetrics :", error)
assert names == ["decisions_total", "llamacpp:prompt_tokens_total"]
assert len(errors) == 2, errors
print("as stated")
PY
