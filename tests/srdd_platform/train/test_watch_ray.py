"""What a real training on Ray tells: files, TensorBoard, Prometheus, and that memory ran out."""

import io
import re
import resource
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
import ray
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srdd.errors import UserError
from srdd.presets import digits
from srdd_platform.cli.log_output import log_to
from srdd_platform.cli.progress import bars
from srdd_platform.core.ray_session import Session
from srdd_platform.core.runs import METRICS, THROUGHPUT, open_run, read_metrics
from srdd_platform.train.job import Job, make_job
from srdd_platform.train.launcher import train
from srdd_platform.train.options import Options

pytestmark = pytest.mark.ray
STEPS = 40


def train_shown(job: Job, ray_session: Session, out: io.StringIO) -> None:
    """Train as the command does, whose terminal is ``out``."""
    console = Console(file=out, width=200)
    with log_to(console):
        train([job], ray_session, bars(console))


class Scraper:
    """Reads the node's metrics endpoint over and over, as Prometheus would."""

    def __init__(self) -> None:
        node = next(node for node in ray.nodes() if node["Alive"])
        self._url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
        self.seen: dict[str, float] = {}  # by name and run, the last value
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        line = re.compile(r'ray_srdd_train_(\w+)\{.*run="([^"]+)".*\} (\S+)')
        while not self._stop.wait(0.3):
            try:
                text = httpx.get(self._url).text
            except httpx.HTTPError:  # the agent is busy
                continue
            for name, run, value in line.findall(text):
                self.seen[f"{name} {run}"] = float(value)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=60)


def test_a_killed_training_is_told_of_once_in_every_place(
    ray_session: Session, digits_shards: Path, tmp_path: Path,
    kill_worker_after: Callable[[Path, int], object],
) -> None:  # fmt: skip
    run, out = tmp_path / "tokenizer", io.StringIO()
    run.mkdir()
    killer, scraper = kill_worker_after(run, 20), Scraper()
    options = Options(max_steps=STEPS, checkpoint_every=10, grid_every=10, batch_size=32)
    job = make_job("tokenizer", digits(), digits_shards, run, options)
    train_shown(job, ray_session, out)
    killer.close()  # type: ignore[attr-defined]
    scraper.close()
    steps = list(range(10, STEPS + 1, 10))

    speed = read_metrics(run, THROUGHPUT)
    assert [line["step"] for line in speed] == steps
    assert all(line["images_per_s"] > 0 and 0 < line["mfu"] for line in speed)
    assert all(0 <= line["data_wait"] <= 1 for line in speed)
    times = [line["time"] for line in speed]
    assert times == sorted(times)
    assert [path.name for path in sorted((run / "grids").iterdir())] == [
        f"step_{step:06d}.png" for step in steps
    ]

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    metrics = read_metrics(run)
    shown = events.Scalars("train/loss")
    assert [(e.step, e.value) for e in shown] == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in metrics
    ]
    assert [round(e.wall_time, 3) for e in shown] == times
    assert [e.step for e in events.Scalars("throughput/mfu")] == steps
    assert [e.step for e in events.Images("grid")] == steps
    assert [e.step for e in events.Scalars("val/psnr")] == [STEPS]

    at = scraper.seen[f"step {run}"]  # the last that was exported while the worker lived
    assert at in steps
    loss = {line["step"]: line["loss"] for line in metrics}[at]
    assert scraper.seen[f"loss {run}"] == pytest.approx(loss, rel=1e-5)
    assert scraper.seen[f"images_per_s {run}"] > 0
    assert scraper.seen[f"mfu {run}"] > 0
    assert re.search(
        r"step 40/40, loss \d\.\d{3}, .* images/s, MFU .*%, 0:00:00 left", out.getvalue()
    )


def test_a_run_in_any_folder_trains_and_is_seen_without_tensorboard_and_previews(
    ray_session: Session, digits_shards: Path, tmp_path: Path
) -> None:
    """ray#18517: a folder whose name is not ASCII ended every training at its first metric."""
    run, out = tmp_path / "läufe" / "größe 100%" / "研究", io.StringIO()
    run.mkdir(parents=True)
    options = Options(
        max_steps=STEPS, batch_size=16, grid_every=10, checkpoints=(tmp_path / "sté #1").as_uri()
    )
    job = make_job("tokenizer", digits(), digits_shards, run, options)
    scraper = Scraper()
    with open_run(run, "train tokenizer", *job.config):
        pass
    for name in ("tensorboard", "grids"):
        (run / name).write_text("a file in its place")
    train_shown(job, ray_session, out)
    scraper.close()
    assert [line["step"] for line in read_metrics(run)] == list(range(10, STEPS + 1, 10))
    assert (run / "model").is_dir()
    assert (tmp_path / "sté #1" / f"step_{STEPS:06d}" / "state.pt").is_file()
    tag = f"{tmp_path}/l%C3%A4ufe/gr%C3%B6%C3%9Fe 100%25/%E7%A0%94%E7%A9%B6"
    assert scraper.seen[f"step {tag}"] in range(10, STEPS + 1, 10)
    told = [line for line in out.getvalue().splitlines() if "cannot be kept up" in line]
    assert len(told) == 2
    assert "研究: TensorBoard's files cannot be kept up: " in told[0]
    assert "研究: previews cannot be kept up: " in told[1]


class Squeezer:
    """Leaves a run's worker little address space more than it has before its first update."""

    ROOM = 400 * 2**20  # threads want some; an update of the test wants three times as much

    def __init__(self, run: Path) -> None:
        self.run = run
        self.squeezed = 0
        self.refused = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not (self.run / METRICS).exists():  # the worker is about to begin
            if self._stop.wait(0.02):
                return
        for process in psutil.Process().children(recursive=True):  # another Ray is not ours
            try:
                if "RayTrainWorker" in " ".join(process.cmdline() or [process.name()]):
                    most = process.memory_info().vms + self.ROOM
                    resource.prlimit(process.pid, resource.RLIMIT_AS, (most, most))
                    self.squeezed += 1
            except psutil.Error:
                continue
            except PermissionError as error:
                self.refused = str(error)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=60)


def test_out_of_memory_is_told_with_what_to_try_and_the_run_goes_on_in_smaller_parts(
    ray_session: Session, digits_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tokenizer"
    run.mkdir()
    options = Options(max_steps=3, batch_size=1200)
    job = make_job("tokenizer", digits(), digits_shards, run, options)
    squeezer = Squeezer(run)
    try:
        with pytest.raises(UserError) as told:
            train([job], ray_session)
    finally:
        squeezer.close()
    if squeezer.refused:
        pytest.skip(f"prlimit: {squeezer.refused}")
    assert squeezer.squeezed == 1
    assert re.search(
        r"out of memory with 1200 images at once in each worker: give --accumulate 2 "
        r"\(600 at once, the same model\).*the last checkpoint is kept",
        str(told.value),
    )
    assert not (run / "model").exists()
    smaller = make_job("tokenizer", digits(), digits_shards, run, replace(options, accumulate=8))
    train([smaller], ray_session)
    assert (run / "model").is_dir()
    assert [line["step"] for line in read_metrics(run)] == [3]
