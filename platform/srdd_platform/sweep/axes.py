"""Axes of models: what a sweep varies beside the settings of a sampler.

An axis is an entry of :data:`AXES`: a function that finds or makes a model for each of its values,
from a model that differs from them in this axis alone.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

from srdd.errors import UserError
from srdd.load import load_var
from srdd.var.masks import MASKS, Mask
from srdd.var.pipeline import save_pipeline
from srdd.var.prune import prune_pipeline
from srdd_platform.core.files import atomic_path
from srdd_platform.core.parsing import integers
from srdd_platform.core.runs import model_dir
from srdd_platform.evaluation.generate import Load
from srdd_platform.evaluation.protocol import weights_digest
from srdd_platform.sweep.trainer import Trainer
from srdd_platform.train.job import make_job

Models = dict[tuple[str, ...], Path]  # pipeline or run directories by a value of each axis

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What the models of an axis are made from, and where."""

    folder: Path  # for the models' directories, named by their axes
    data: Path  # shards
    load: Load
    trainer: Trainer
    tokenizer: Path | None = None  # of a preset; None: no transformer is trained


Make = Callable[[Path, Sequence[str], Source], list[Path]]


def train_masks(parent: Path, masks: Sequence[str], source: Source) -> list[Path]:
    """The preset's transformer under each mask, trained for the same number of steps.

    Raises:
        UserError: a mask is unknown, or the model is given and cannot be trained anew.
    """
    if source.tokenizer is None:
        raise UserError("a sweep over masks trains its models: leave out --model and --data")
    for mask in masks:
        if mask not in MASKS:
            raise UserError(f"models: unknown mask {mask!r}; there are {', '.join(MASKS)}")
    trainer, runs = source.trainer, [source.folder / mask for mask in masks]
    jobs = [
        make_job(
            "transformer", trainer.preset, source.data, run, trainer.options,
            tokenizer=source.tokenizer, mask=cast(Mask, run.name),
        )
        for run in runs
    ]  # fmt: skip
    trainer.train(jobs, f"the transformers: {', '.join(masks)}")
    return runs


def shorten_schedules(parent: Path, schedules: Sequence[str], source: Source) -> list[Path]:
    """The parent over fewer scales: distilled with the preset's recipe, or pruned without one.

    Raises:
        UserError: a schedule is not like "1,2,4", or not a part of the parent's.
    """
    known = tuple(source.load(parent).card.defaults["patch_nums"])
    found = []
    for schedule in schedules:
        sides = integers(schedule, "schedule")
        directory = source.folder / f"{parent.name}-{'-'.join(map(str, sides))}"
        if sides == known:
            directory = parent
        elif source.tokenizer is not None:
            source.trainer.distil(parent, source.data, sides, directory)
        else:
            directory = _prune(parent, sides, directory)
        found.append(directory)
    return found


def _prune(parent: Path, sides: tuple[int, ...], directory: Path) -> Path:
    """The parent pruned to some scales: beside ``directory``, named by the parent's weights too.

    So a model that was trained anew, or another one of the same name, is pruned anew.
    """
    digest = weights_digest(model_dir(parent))
    pruned = directory.with_name(f"{directory.name}-{digest[:8]}")
    if not pruned.exists():
        logger.info("Pruning %s to the scales %s", parent, ",".join(map(str, sides)))
        pipeline = prune_pipeline(load_var(parent), sides)
        with atomic_path(pruned) as temporary:
            save_pipeline(pipeline, temporary)
    return pruned


AXES: Mapping[str, Make] = {"mask": train_masks, "schedule": shorten_schedules}  # in this order


def check_axes(axes: Mapping[str, Sequence[str]]) -> None:
    """Refuse axes of models that are not in :data:`AXES`.

    Raises:
        UserError: an axis is unknown.
    """
    for axis in axes:
        if axis not in AXES:
            raise UserError(f"models: unknown axis {axis!r}; there are {', '.join(AXES)}")


def make_models(axes: Mapping[str, Sequence[str]], parent: Path, source: Source) -> Models:
    """A model for each combination of values.

    Args:
        axes: the values of each axis.
        parent: the model where no axis says otherwise.
        source: how models are made.

    Raises:
        UserError: a value of an axis cannot be had.
    """
    made: dict[frozenset[tuple[str, str]], Path] = {frozenset(): parent}
    for axis in (axis for axis in AXES if axis in axes):
        made = {
            known | {(axis, value)}: directory
            for known, origin in made.items()
            for value, directory in zip(
                axes[axis], AXES[axis](origin, axes[axis], source), strict=True
            )
        }
    return {
        values: made[frozenset(zip(axes, values, strict=True))]
        for values in product(*axes.values())
    }
