"""How far trainings are, read from their files while they run."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from srdd_platform.core.runs import METRICS, THROUGHPUT
from srdd_platform.core.watching import WARNINGS, Watcher
from srdd_platform.train.job import Job
from srdd_platform.train.tail import Follower
from srdd_platform.train.tensorboard import Events

WINDOW = 30  # logged steps over which the pace is taken

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
        self.now = time.monotonic()  # of the last update
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
        self.now = now
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
            self._tell(f"{self.job.title}: {text}")

    def note(self) -> str:
        """Loss, speed and time left, as far as they are known."""
        if not self._last:
            return ""
        parts, per_s = [f"loss {self._last['loss']:.3f}"], self._speed.get("images_per_s")
        step_s = None
        if per_s:
            parts.append(f"{per_s:.3g} images/s")
            step_s = self.job.optim.batch_size / per_s
        if "mfu" in self._speed:
            parts.append(f"MFU {self._speed['mfu']:.1%}")
        left_s = self.pace.left_s(self.job.steps - self.step, step_s)
        if left_s is not None:
            parts.append(f"{timedelta(seconds=round(left_s))} left")
        return ", ".join(parts)


Display = Callable[[Sequence[View]], AbstractContextManager[Callable[[], None]]]
"""Shows trainings while its context holds; what the context yields is called after each update."""


@contextmanager
def no_display(views: Sequence[View]) -> Iterator[Callable[[], None]]:
    """A display that shows nothing."""
    yield lambda: None


@contextmanager
def follow(jobs: Sequence[Job], display: Display) -> Iterator[Callable[[], None]]:
    """Follow trainings by their files; what the context yields reads what is new and shows it.

    TensorBoard's event files are kept up on the way. What cannot be shown or kept up is logged
    once.
    """
    guarded = Watcher("the progress display", logger.warning)
    views = [View(job, logger.warning) for job in jobs]

    def update() -> None:
        now = time.monotonic()
        for view in views:
            view.update(now)
        show()

    try:
        with display(views) as show:
            yield lambda: guarded(update)
            guarded(update)
    finally:
        for view in views:
            view.close()
