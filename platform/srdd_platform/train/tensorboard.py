"""TensorBoard's event files of a run, in ``tensorboard/``.

The launcher writes them from ``metrics.jsonl``, ``throughput.jsonl`` and ``grids/``, which are the
truth: a worker that is lost loses nothing here. Where a run is taken up again, or goes back to a
checkpoint, the event files are written anew, so no step is there twice. ``validation.json`` is
added at the last step.
"""

import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import image, scalar

from srdd_platform.core.files import read_json
from srdd_platform.core.runs import METRICS, THROUGHPUT
from srdd_platform.train.previews import grid_steps
from srdd_platform.train.tail import Follower

_OF_SCALE = re.compile(r"(.+)_(\d+x\d+)")


def tag(name: str) -> str:
    """TensorBoard's name of a metric: what belongs together shares the part before the slash."""
    if match := _OF_SCALE.fullmatch(name):
        return f"{match[1]}/{match[2]}"
    if name.startswith("val_"):
        return f"val/{name.removeprefix('val_')}"
    return f"train/{name}"


class EventFile:
    """One event file, written by the thread that calls.

    TensorBoard's own writer has a thread: on a full disk that prints a traceback, and the error
    comes with a later call.
    """

    def __init__(self, directory: Path) -> None:
        """Begin a file; a running TensorBoard forgets what it read before."""
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}.srdd"
        self._file = (directory / name).open("wb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), session_log=start, step=0))

    def add(self, summary: Any, step: int, written: float | None) -> None:
        """Add a summary of a step, made at a time in seconds since 1970; now where it is None."""
        at = time.time() if written is None else written
        self._write(Event(wall_time=at, step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Bring what was added to the disk."""
        self._records.flush()

    def close(self) -> None:
        """End the file."""
        self._records.close()


class Events:
    """The event files of one run, kept up with its files by :meth:`update`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._throughput = Follower(run / THROUGHPUT)
        self._metrics = Follower(run / METRICS)
        self._times: dict[int, float] = {}
        self._grids: set[int] = set()
        self._writer = self._fresh()

    def _fresh(self) -> EventFile:
        """A file in an empty directory."""
        directory = self.run / "tensorboard"
        shutil.rmtree(directory, ignore_errors=True)
        return EventFile(directory)

    def update(self) -> None:
        """Write what is new, or all of it where the run went back."""
        speed, metrics = self._throughput.read(), self._metrics.read()
        if speed.anew or metrics.anew:
            self._writer.close()
            for follower in (self._throughput, self._metrics):
                follower.close()
            self._times, self._grids = {}, set()
            self._writer = self._fresh()
            speed, metrics = self._throughput.read(), self._metrics.read()
        for line in speed.lines:
            self._times[int(line["step"])] = line["time"]
            self._scalars(line, "throughput/")
        for line in metrics.lines:
            self._scalars(line)
        for step, path in grid_steps(self.run).items():
            if step not in self._grids:
                self._grids.add(step)
                pixels = np.asarray(Image.open(path))
                written = path.stat().st_mtime
                self._writer.add(image("grid", pixels, dataformats="HWC"), step, written)
        self._writer.flush()

    def close(self, last_step: int) -> None:
        """Write what is left."""
        self.update()
        path = self.run / "validation.json"
        if path.exists():
            found = {f"val_{name}": v for name, v in read_json(path).items() if name != "n"}
            self._scalars({"step": last_step, **found})
        self._writer.close()
        for follower in (self._throughput, self._metrics):
            follower.close()

    def _scalars(self, line: dict[str, float], prefix: str = "") -> None:
        step = int(line["step"])
        for name, value in line.items():
            if name not in ("step", "time"):
                shown = scalar(prefix + name if prefix else tag(name), value)
                self._writer.add(shown, step, self._times.get(step))
