"""Time and memory of the embedded run, from nothing to the report, and of giving it again.

    python benchmarks/first_run.py DIR

Runs ``python sweeps/resample_threshold.py`` twice in the empty directory DIR and prints, for each,
the wall seconds and the peak of the process tree's proportional memory (PSS), Ray's own included.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

POLL_S = 1.0
SWEEP = Path(__file__).resolve().parents[1] / "sweeps" / "resample_threshold.py"


def tree_pss_mb(root: psutil.Process) -> float:
    """PSS of a process and all below it, in MB; processes that just ended count nothing."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total / 1e6


def run(directory: Path) -> dict[str, float]:
    """Run the sweep once; its output goes to ``sweep.log``."""
    started = time.monotonic()
    peak = 0.0
    with (directory / "sweep.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, str(SWEEP)], cwd=directory, stdout=log, stderr=subprocess.STDOUT
        )
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, tree_pss_mb(watched))
            except psutil.NoSuchProcess:
                break
            time.sleep(POLL_S)
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 1), "peak_pss_mb": round(peak), "exit": process.wait()}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("directory", type=Path, metavar="DIR")
    directory = options.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        sys.exit(f"{directory} is not empty")
    results = {"cpus": os.cpu_count(), "first": run(directory), "again": run(directory)}
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
