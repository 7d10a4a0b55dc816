"""What a person sees of trainings that run: a bar each, or lines where there is no terminal."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from srdd_platform.core.runs import METRICS, THROUGHPUT
from srdd_platform.core.watching import WARNINGS, Watcher
from srdd_platform.train.job import Job, title
from srdd_platform.train.tail import Follower
from srdd_platform.train.tensorboard import Events

WINDOW = 30  # logged steps over which the pace is taken
LINES = 10  # of a training without a terminal
SILENCE_S = 600.0  # after which it says a further line

logger = logging.getLogger(__name__)


class Pace:
    """Seconds a step, from the moments at which steps were seen done."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def see(self, step: int, now: float) -> None:
        """Take in that a step was done just now."""
        self._seen.append((step, now))

    def forget(self) -> None:
        """The run went back, or was taken up again: what was seen says nothing of the pace."""
        self._seen.clear()

    def left_s(self, steps: int, step_s: float | None = None) -> float | None:
        """Seconds for so many steps more; None where nothing is known.

        Args:
            steps: still to do.
            step_s: what a step takes by another measure, for as long as there is no pace yet.
        """
        if len(self._seen) > 1:
            (first, begun), (last, now) = self._seen[0], self._seen[-1]
            step_s = (now - begun) / (last - first)
        return None if step_s is None else steps * step_s


class View:
    """What is known of one training."""

    def __init__(self, job: Job, tell: Callable[[str], None]) -> None:
        """Follow a job's run.

        Args:
            job: the training.
            tell: called once with each line about what could not be kept up.
        """
        run = Path(job.run)
        self.job = job
        self.step = 0
        self.pace = Pace()
        self._tell, self._told = tell, set[str]()
        self._board = Watcher("TensorBoard's files", self._warn)
        self.events = self._board(Events, run)
        self._metrics, self._throughput = Follower(run / METRICS), Follower(run / THROUGHPUT)
        self._warnings = Follower(run / WARNINGS)
        with suppress(OSError):
            self._warnings.read()  # those of an earlier start were told then
        self._first = True
        self._last: dict[str, float] = {}
        self._speed: dict[str, float] = {}

    def update(self, now: float) -> None:
        """Read what is new."""
        metrics, speed = self._metrics.read(), self._throughput.read()
        if metrics.anew:
            self.step, self._last = 0, {}
        if metrics.lines:
            self._last = metrics.lines[-1]
            self.step = int(self._last["step"])
        if metrics.anew or self._first:  # what is there already was done before
            self.pace.forget()
        elif metrics.lines:
            self.pace.see(self.step, now)
        self._first = False
        if speed.lines:
            self._speed = speed.lines[-1]
        for line in self._warnings.read().lines:
            self._warn(str(line.get("warning")))
        self._record(lambda events: events.update())

    def close(self) -> None:
        """The training has ended."""
        for follower in (self._metrics, self._throughput, self._warnings):
            follower.close()
        self._record(lambda events: events.close(self.job.steps))

    def _record(self, action: Callable[[Events], None]) -> None:
        """Keep TensorBoard's files up; after an error they are left as they are."""
        if self.events is not None and not self._board.failed:
            self._board(action, self.events)

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(f"{title(self.job)}: {text}")

    def note(self) -> str:
        """Loss, speed and time left, as far as they are known."""
        if not self._last:
            return ""
        parts, per_s = [f"loss {self._last['loss']:.3f}"], self._speed.get("images_per_s")
        step_s = None
        if per_s:
            parts.append(f"{per_s:.3g} images/s")
            step_s = int(self.job.settings["optim"]["batch_size"]) / per_s
        if "mfu" in self._speed:
            parts.append(f"MFU {self._speed['mfu']:.1%}")
        left_s = self.pace.left_s(self.job.steps - self.step, step_s)
        if left_s is not None:
            parts.append(f"{timedelta(seconds=round(left_s))} left")
        return ", ".join(parts)


@contextmanager
def bars(jobs: Sequence[Job], console: Console) -> Iterator[Callable[[], None]]:
    """A progress bar a job, fed from its files; plain lines where there is no terminal.

    TensorBoard's event files are kept up on the way. What cannot be shown or kept up is told once.
    """
    progress = Progress(
        TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    display = Watcher("the progress display", logger.warning)
    ids = [progress.add_task(title(job), total=job.steps, note="") for job in jobs]

    def warn(text: str) -> None:
        console.print(text, style="yellow", soft_wrap=True)

    views = [View(job, warn) for job in jobs]
    said = [(0, time.monotonic()) for _ in jobs]  # the step of each one's last line, and when

    def update() -> None:
        now = time.monotonic()
        for i, (job, view) in enumerate(zip(jobs, views, strict=True)):
            before = view.step
            view.update(now)
            progress.update(ids[i], completed=view.step, note=view.note())
            if not progress.disable or view.step == before:
                continue
            step, when = said[i]
            every = max(1, job.steps // LINES)
            if view.step // every != step // every or now - when > SILENCE_S:
                said[i] = (view.step, now)
                line = f"  {title(job)}: step {view.step}/{job.steps}, {view.note()}"
                console.print(line, soft_wrap=True)

    display(progress.start)
    try:
        yield lambda: display(update)
        display(update)
    finally:
        display(progress.stop)
        for view in views:
            view.close()
