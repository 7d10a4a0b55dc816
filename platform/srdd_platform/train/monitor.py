"""What the first worker of a training tells of it while it runs.

``metrics.jsonl`` has what the training computes, the same in every run of the same settings.
What a clock says stands apart, in ``throughput.jsonl``: ``images_per_s`` of all workers, ``mfu``
(model FLOPs utilisation, of the task's FLOPs and :mod:`srdd_platform.train.device_flops`;
absent on a device whose peak is not known), and ``data_wait``, the share of that time spent waiting
for the next batch. Time for checkpoints, validation and grids is not part of it, nor is the first
update.

Both go to Ray's metrics too, where its dashboard and Prometheus find them as
``ray_srdd_train_loss`` and so on, with the tags ``run`` (its path in ASCII) and ``kind``.
"""

import string
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import quote

import torch
from ray.util.metrics import Gauge

from srdd.train.config import OptimConfig
from srdd.train.task import Batch, Task
from srdd.train.workers import Reduce
from srdd_platform.core.runs import METRICS, THROUGHPUT, append_metrics, cut_metrics
from srdd_platform.core.watching import Watcher, tell_launcher
from srdd_platform.train.data import TrainingData
from srdd_platform.train.device_flops import device_peak
from srdd_platform.train.previews import cut_grids, draw, grid_path

P = ParamSpec("P")
R = TypeVar("R")

GAUGES = {
    "step": "updates done",
    "loss": "the loss that is minimised",
    "images_per_s": "images of all workers a second",
    "mfu": "share of the devices' peak that the model's products use",
}


class Meter:
    """How fast updates follow each other, from the batches that they take."""

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.batch_size = batch_size
        self._clock = clock
        self._since: float | None = None  # none before the second batch
        self._taken, self._apart, self._waited = 0, 0.0, 0.0

    def stream(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, counted."""
        first = True
        while True:
            before = self._clock()
            if self._since is None and not first:  # the first update is done
                self._since, self._taken, self._apart, self._waited = before, 0, 0.0, 0.0
            first = False
            batch = next(batches, None)
            if batch is None:
                return
            self._waited += self._clock() - before
            self._taken += 1
            yield batch

    def apart(self, action: Callable[P, R]) -> Callable[P, R]:
        """The same action, whose time is no part of an update."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            before = self._clock()
            try:
                return action(*args, **kwargs)
            finally:
                self._apart += self._clock() - before

        return timed

    def read(self) -> dict[str, float]:
        """``images_per_s`` and ``data_wait`` since the last call; empty where nothing is known."""
        if self._since is None:
            return {}
        now = self._clock()
        seconds = now - self._since - self._apart
        found = {
            "images_per_s": self._taken * self.batch_size / seconds,
            "data_wait": self._waited / seconds,
        }
        self._since, self._taken, self._apart, self._waited = now, 0, 0.0, 0.0
        return found


def ascii_tag(text: str) -> str:
    """A text as a tag of Ray's metrics, which must be ASCII: other characters as ``%XX``."""
    return quote(text, safe=string.punctuation.replace("%", "") + " ")


class Watch:
    """Measures a training, and from its first worker tells files and Ray of it.

    ``metrics.jsonl`` is the record; the rest only watches (:mod:`srdd_platform.core.watching`).
    """

    def __init__(
        self,
        run: Path,
        kind: str,
        task: Task,
        data: TrainingData,
        optim: OptimConfig,
        reduce: Reduce,
        device: torch.device,
    ) -> None:
        """Find the device's peak and make Ray's gauges, on the first worker.

        Args:
            run: directory that the files go to.
            kind: of the training, a tag of Ray's metrics.
            task: whose updates are measured.
            data: its samples, of which previews show some.
            optim: batch size and precision.
            reduce: the other workers.
            device: that is trained on.
        """
        self.run, self.kind, self.task = run, kind, task
        self.first = reduce.rank == 0
        self.meter = Meter(optim.batch_size)
        self._images = cache(data.images.spread)
        self._gauges: dict[str, Gauge] = {}
        if not self.first:
            return
        tell = tell_launcher(run)
        self._speeds = Watcher(THROUGHPUT, tell)
        self._exports = Watcher("Ray's metrics", tell)
        self._previews = Watcher("previews", tell)
        peak = self._speeds(device_peak, device, optim.precision)
        self._peak = None if peak is None else peak.flops * reduce.world
        self._speeds(task.flops, 0)  # counted now, not in the middle of an update
        self._exports(self._make_gauges)

    def begin(self, step: int) -> None:
        """Forget what was told of later steps than the one from which the run goes on."""
        if self.first:
            cut_metrics(self.run, step, [METRICS])
            self._speeds(cut_metrics, self.run, step, [THROUGHPUT])
            self._previews(cut_grids, self.run, step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write a line of each file, and set Ray's gauges."""
        if not self.first:
            return
        speed = self._speeds(self._write_speed, step) or {}
        append_metrics(self.run, step, metrics)
        self._exports(self._export, {**metrics, **speed, "step": float(step)})

    def grid(self, step: int, task: Task) -> None:
        """Write the grid of a step, with the weights that the task has now; the first worker."""
        self._previews(draw, task, self._images, grid_path(self.run, step))

    def _write_speed(self, step: int) -> dict[str, float]:
        speed = self.meter.read()
        if speed and self._peak is not None:
            speed["mfu"] = speed["images_per_s"] * self.task.flops(step - 1) / self._peak
        rounded = {k: float(f"{v:.6g}") for k, v in speed.items()}
        append_metrics(self.run, step, {"time": time.time(), **rounded}, THROUGHPUT, digits=13)
        return speed

    def _make_gauges(self) -> None:
        for name, text in GAUGES.items():
            gauge = Gauge(f"srdd_train_{name}", description=text, tag_keys=("run", "kind"))
            gauge.set_default_tags({"run": ascii_tag(str(self.run)), "kind": self.kind})
            self._gauges[name] = gauge

    def _export(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if name in self._gauges:
                self._gauges[name].set(value)
