"""What a person sees of trainings that run: a bar each, or lines where there is no terminal."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from srdd_platform.core.watching import Watcher
from srdd_platform.train.progress import Display, View

LINES = 10  # of a training without a terminal
SILENCE_S = 600.0  # after which it says a further line

logger = logging.getLogger(__name__)


def bars(console: Console) -> Display:
    """A display with a progress bar a training; plain lines where there is no terminal."""

    @contextmanager
    def display(views: Sequence[View]) -> Iterator[Callable[[], None]]:
        lines = None if console.is_terminal else _Lines(views, console)
        progress = Progress(
            TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        ids = [progress.add_task(v.job.title, total=v.job.steps, note="") for v in views]

        def show() -> None:
            for view, bar in zip(views, ids, strict=True):
                progress.update(bar, completed=view.step, note=view.note())
            if lines is not None:
                lines.print_new()

        guarded = Watcher("the progress display", logger.warning)
        guarded(progress.start)
        try:
            yield show
        finally:
            guarded(progress.stop)

    return display


class _Lines:
    """Ten lines a training, and one more after ten minutes without."""

    def __init__(self, views: Sequence[View], console: Console) -> None:
        self._views, self._console = views, console
        self._seen = [0 for _ in views]  # the step of each at the last look
        self._said = [(0, view.now) for view in views]  # that of its last line, and when

    def print_new(self) -> None:
        """Print a line of each training that has come far enough since its last one."""
        for i, view in enumerate(self._views):
            step, steps, (last, when) = view.step, view.job.steps, self._said[i]
            moved = step != self._seen[i]
            self._seen[i] = step
            every = max(1, steps // LINES)
            if moved and (step // every != last // every or view.now - when > SILENCE_S):
                self._said[i] = (step, view.now)
                line = f"  {view.job.title}: step {step}/{steps}, {view.note()}"
                self._console.print(line, soft_wrap=True)
