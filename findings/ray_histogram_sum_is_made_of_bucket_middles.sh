#!/usr/bin/env bash
# 2026-11-27, ray 2.60.0: the `_sum` that Ray exports of a `ray.util.metrics.Histogram` is not the
# sum of what was observed. Each observation counts as the middle of its bucket, so a mean made of
# `_sum` and `_count` is wrong: ten observations of 2.0 with the boundaries 1 and 10 give 55, not 20.
# A Counter beside the histogram, to which the same values are added, exports the right sum.
# The script fails if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'ray[default]==2.60.0'
cd "$work"
RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" - <<'PY'
import re
import socket
import time
import urllib.request

import ray
from ray.util.metrics import Counter, Histogram

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", _metrics_export_port=port,
         _system_config={"metrics_report_interval_ms": 500})
histogram = Histogram("seconds", description="Seconds.", boundaries=[1.0, 10.0])
counter = Counter("seconds_in_all", description="Seconds.")
for _ in range(10):
    histogram.observe(2.0)
    counter.inc(2.0)


def exported(name):
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    found = re.search(rf"^ray_{name}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else None


values = {}
names = ("seconds_sum", "seconds_count", "seconds_in_all_total")
for _ in range(60):
    try:
        values = {name: exported(name) for name in names}
    except OSError:
        pass
    if values and None not in values.values():
        break
    time.sleep(1)
ray.shutdown()
print(f"ray {ray.__version__}: ten observations of 2.0 are exported as {values}")
assert values["seconds_count"] == 10
assert values["seconds_in_all_total"] == 20
assert values["seconds_sum"] == 55, "the sum is no longer made of bucket middles"
PY
