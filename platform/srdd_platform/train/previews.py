"""Images that show how far a training is: ``grids/step_NNNNNN.png``.

What they show is the task's (:meth:`srdd.train.task.Task.preview`). Nothing here touches what is
trained, nor torch's random numbers.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from srdd.train.previews import COLUMNS
from srdd.train.task import Task
from srdd_platform.core.images import grid_png


def grid_path(run: Path, step: int) -> Path:
    """Where the grid of a step lies."""
    return run / "grids" / f"step_{step:06d}.png"


def grid_steps(run: Path) -> dict[int, Path]:
    """The grids of a run by step, in order."""
    found = sorted((run / "grids").glob("step_*.png"))
    return {int(path.stem.removeprefix("step_")): path for path in found}


def cut_grids(run: Path, step: int) -> None:
    """Forget grids after ``step``, from which the run goes on."""
    for at, path in grid_steps(run).items():
        if at > step:
            path.unlink()
    for path in (run / "grids").glob(".*.tmp"):  # a killed worker was writing it
        path.unlink()


def draw(task: Task, images: Callable[[int], Tensor], path: Path) -> None:
    """Write a preview of the weights that the task has now; a task without one writes nothing."""
    task.module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            shown = task.preview(images)
    finally:
        task.module.train()
    if shown is not None:
        grid_png(shown.cpu(), path, COLUMNS)
