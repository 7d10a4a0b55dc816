"""TensorBoard's event files of a run, in ``tensorboard/``.

The launcher writes them from ``metrics.jsonl``, ``throughput.jsonl`` and ``grids/``, which are the
truth: a worker that is lost loses nothing here. Where a run is taken up again, or goes back to a
checkpoint, the event files are written anew, so no step is there twice. ``validation.json`` is
added at the last step.
"""

import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from srdd_platform.files import read_json
from srdd_platform.follow import Follower
from srdd_platform.grids import grid_steps
from srdd_platform.runs import METRICS, THROUGHPUT

_OF_SCALE = re.compile(r"(.+)_(\d+x\d+)")


def tag(name: str) -> str:
    """TensorBoard's name of a metric: what belongs together shares the part before the slash."""
    if match := _OF_SCALE.fullmatch(name):
        return f"{match[1]}/{match[2]}"
    if name.startswith("val_"):
        return f"val/{name.removeprefix('val_')}"
    return f"train/{name}"


class Events:
    """The event files of one run, kept up with its files by :meth:`update`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._throughput = Follower(run / THROUGHPUT)
        self._metrics = Follower(run / METRICS)
        self._times: dict[int, float] = {}
        self._grids: set[int] = set()
        self._writer = self._fresh()

    def _fresh(self) -> SummaryWriter:
        """A writer in an empty directory; it also tells a running TensorBoard to forget."""
        directory = self.run / "tensorboard"
        shutil.rmtree(directory, ignore_errors=True)
        return SummaryWriter(str(directory), purge_step=0)

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
                self._writer.add_image("grid", pixels, step, written, dataformats="HWC")
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
                self._writer.add_scalar(
                    prefix + name if prefix else tag(name), value, step, self._times.get(step)
                )
