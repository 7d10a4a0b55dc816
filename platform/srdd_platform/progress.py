"""What a person sees of trainings that run."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from srdd_platform.jobs import Job, title
from srdd_platform.runs import read_metrics


@contextmanager
def bars(jobs: Sequence[Job], console: Console) -> Iterator[Callable[[], None]]:
    """A progress bar a job, fed from its metrics; plain lines where there is no terminal."""
    progress = Progress(
        TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    ids = [progress.add_task(title(job), total=job.steps, note="") for job in jobs]
    shown = [0 for _ in jobs]
    started = time.monotonic()

    def update() -> None:
        for i, job in enumerate(jobs):
            lines = read_metrics(Path(job.run))
            if not lines:
                continue
            last = lines[-1]
            step = int(last["step"])
            note = f"loss {last['loss']:.3f}"
            progress.update(ids[i], completed=step, note=note)
            if progress.disable and step >= shown[i] + max(1, job.steps // 5):
                shown[i] = step
                seconds = time.monotonic() - started
                console.print(f"  {title(job)}: step {step}/{job.steps}, {note}, {seconds:.0f} s")

    with progress:
        yield update
        update()
