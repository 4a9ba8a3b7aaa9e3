#!/usr/bin/env bash
# One would expect: a parser of Prometheus text keeps one histogram for each set of labels, as it does for counters and
# gauges.
# What happens: parse-prometheus-text-format (200,000 downloads a month) makes one histogram of all label sets, with the
# buckets of the last one and without any label. The latencies of two models of one server become those of one.
# Versions: parse-prometheus-text-format 1.1.1. Needs node and npm.
# Why it matters: dashboards of inference servers ask for latency by model or by verdict, and get the last line's. No
# error, no warning.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
npm install --silent --no-audit --no-fund --prefix "$dir" parse-prometheus-text-format@1.1.1 >/dev/null
cat > parse.cjs <<'JS'
const assert = require("node:assert");
const parse = require("parse-prometheus-text-format");
console.log("parse-prometheus-text-format", require("parse-prometheus-text-format/package.json").version);
const text = `# TYPE requests counter
requests{model="small"} 2
requests{model="large"} 9
# TYPE seconds histogram
seconds_bucket{model="small",le="1"} 1
seconds_bucket{model="small",le="+Inf"} 2
seconds_sum{model="small"} 3
seconds_count{model="small"} 2
seconds_bucket{model="large",le="1"} 7
seconds_bucket{model="large",le="+Inf"} 9
seconds_sum{model="large"} 8
seconds_count{model="large"} 9
`;
const [requests, seconds] = parse(text);
console.log(JSON.stringify(requests.metrics));
console.log(JSON.stringify(seconds.metrics));
assert.deepEqual(requests.metrics.map((m) => [m.labels.model, m.value]), [["small", "2"], ["large", "9"]]);
assert.equal(seconds.metrics.length, 1);
assert.equal(seconds.metrics[0].labels, undefined);
assert.deepEqual(seconds.metrics[0].buckets, { 1: "7", "+Inf": "9" });
console.log("as stated");
JS
node parse.cjs
