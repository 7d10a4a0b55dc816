"""Images that show how far a training is: ``grids/step_NNNNNN.png``.

A tokenizer's run shows held-out images above their reconstructions; a transformer's shows
class-balanced samples, drawn with the same seeds at every step and the sampler settings that the
finished pipeline will have. Nothing here touches what is trained, nor torch's random numbers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srdd.generator import sample
from srdd.images import to_float
from srdd.metrics.quality import to_8bit
from srdd.rng import image_seeds
from srdd.train.loop import Task
from srdd.train.var.tokenizer import TokenizerTask
from srdd.train.var.transformer import TransformerTask
from srdd.var.config import SamplerConfig, TransformerConfig
from srdd.var.pipeline import Pipeline, load_tokenizer
from srdd_platform.core.images import grid_png, to_uint8
from srdd_platform.core.runs import tokenizer_dir
from srdd_platform.data.dataset import stacked
from srdd_platform.train.export import class_names
from srdd_platform.train.job import Job

COLUMNS, LINES = 10, 2
Painter = Callable[[Any], Tensor]  # from a task: uint8 [COLUMNS * LINES, 3, R, R]


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


def grid_labels(num_classes: int) -> list[int]:
    """The classes of a grid's samples: they take turns, or are spread evenly over many."""
    num = COLUMNS * LINES
    if num_classes > num:
        return [i * num_classes // num for i in range(num)]
    return [i % num_classes for i in range(num)]


def painter(job: Job, task: Task, device: torch.device) -> Painter | None:
    """What draws the images of a task's grids; None where it has none to show."""
    if isinstance(task, TokenizerTask):
        return _reconstructions(job, device)
    if isinstance(task, TransformerTask):
        return _samples(job, task.model.config, device)
    return None


def draw(job: Job, task: Task, paint: Painter, step: int) -> None:
    """Write the grid of a step with the weights that the task has now."""
    task.module.eval()
    try:
        with torch.no_grad():
            images = paint(task)
    finally:
        task.module.train()
    grid_png(images.cpu(), grid_path(Path(job.run), step), COLUMNS)


def _reconstructions(job: Job, device: torch.device) -> Painter:
    held_out = job.dataset("val")
    wanted = min(COLUMNS, len(held_out))
    picks = [i * len(held_out) // wanted for i in range(wanted)]  # shards may be sorted by class
    originals = stacked(held_out.samples(picks))

    def paint(task: TokenizerTask) -> Tensor:
        codes_BL = task.tokenizer.encode(to_float(originals).to(device))
        blank = originals.new_full((COLUMNS - wanted, *originals.shape[1:]), 128)
        decoded = to_8bit(task.tokenizer.decode(codes_BL)).cpu()
        return torch.cat((originals, blank, decoded))

    return paint


def _samples(job: Job, config: TransformerConfig, device: torch.device) -> Painter:
    with torch.random.fork_rng(devices=[]):
        tokenizer = load_tokenizer(tokenizer_dir(Path(job.tokenizer))).to(device)
    labels = torch.tensor(grid_labels(config.num_classes))
    seeds = image_seeds(int(job.settings["optim"]["seed"]), 0, len(labels))
    names = class_names(job, config)

    def paint(task: TransformerTask) -> Tensor:
        pipeline = Pipeline(tokenizer, task.model, SamplerConfig(), names)
        result = sample(pipeline, labels, pipeline.sampler, seeds)
        return to_uint8(result.images)

    return paint
