"""An elastic training on a cluster whose nodes come and go; a cluster of its own, so slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import io
import json
import sys
import threading
import time
from pathlib import Path
from ray.cluster_utils import Cluster
from rich.console import Console
from srdd.presets import digits
from srdd_platform.train.job import make_job
from srdd_platform.train.launcher import train
from srdd_platform.train.options import Options
from srdd_platform.core.ray_session import session

data, run = map(Path, sys.argv[1:])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
first = cluster.add_node(num_cpus=1)
worlds = []

def until(world):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and training.is_alive():
        for path in sorted(run.glob("checkpoints/step_*/manifest.json")):
            try:
                found = json.loads(path.read_text())
            except OSError:  # it is no longer kept
                continue
            worlds.append(found["world"])
        if worlds and worlds[-1] == world:
            return
        time.sleep(0.1)
    sys.exit(f"no checkpoint of {world} workers: {worlds[-9:]}")

with session(cluster.address) as here:
    options = Options(workers="1:2", max_steps=10**6, checkpoint_every=10, batch_size=32)
    job = make_job("classifier", digits(), data, run, options)
    training = threading.Thread(
        target=train, args=([job], here), daemon=True
    )
    training.start()
    until(1)
    cluster.add_node(num_cpus=1)
    until(2)
    cluster.remove_node(first, allow_graceful=False)
    until(1)
    print("done")
"""


def test_nodes_come_and_go(digits_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(digits_shards), str(run)],
        env={**os.environ, "RAY_raylet_start_wait_time_s": "120"},
        capture_output=True, text=True, check=False, timeout=580,
    )  # fmt: skip
    assert "done" in done.stdout, done.stderr[-2000:]
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(10, steps[-1] + 1, 10))  # none twice, none left out
