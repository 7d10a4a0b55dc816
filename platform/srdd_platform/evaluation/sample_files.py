"""Images of a generator written to files: a grid, or single PNGs with a table."""

import csv
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srdd.class_names import find_all
from srdd.devices import find_device, find_dtype
from srdd.errors import UserError
from srdd.generator import Card, Generator, SampleResult, sample
from srdd.images import grid, to_uint8
from srdd.load import load_pipeline, load_var
from srdd.rng import image_seeds
from srdd.var.accelerate import check_accelerators, make_sampler
from srdd_platform.core.files import atomic_path, write_bytes
from srdd_platform.core.images import to_png

_SAMPLE = re.compile(r"\d{6,}\.png")
_IMAGES = (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")

logger = logging.getLogger(__name__)

Sampler = Callable[[Tensor, Tensor], SampleResult]  # of labels and seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a model runs, in what arithmetic, and how it is made faster."""

    device: str = "cpu"
    dtype: str = "float32"
    int8: bool = False  # this and the next two: see srdd.var.accelerate
    compiled: bool = False
    cuda_graph: bool = False

    @property
    def accelerated(self) -> bool:
        """Whether sampling is anything but the plain loop."""
        return self.int8 or self.compiled or self.cuda_graph


def write_samples(
    model: Path,
    out: Path,
    *,
    num: int = 16,
    seed: int = 0,
    classes: str | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    placement: Placement | None = None,
) -> None:
    """Sample images and write them; log what they cost.

    Args:
        model: pipeline or run directory.
        out: a .png file for a grid; else a directory for single images.
        num: images in all.
        seed: of the first image.
        classes: a list of classes that take turns (see :mod:`srdd.class_names`); None for all.
        settings: of the sampler, instead of the model's own.
        batch_size: images sampled at once.
        placement: None for the CPU in float32.

    Raises:
        UserError: the model, a class or a setting is wrong, or ``out`` holds something else.
    """
    placement = placement or Placement()
    _check(num, seed, batch_size, out)
    generator = _load(model, placement)
    config = with_settings(generator.sampler, settings or {})
    labels = labels_in_turns(generator.card, classes, num)
    seeds = image_seeds(seed, 0, num)
    _check_place(out)
    sampler = _sampler(generator, config, min(num, batch_size), placement)
    pixels, cost = _sample_all(sampler, labels, seeds, batch_size)
    if _is_grid(out):
        write_bytes(out, to_png(grid(pixels)))
    else:
        _write_directory(out, pixels, labels, seeds, generator.card.class_names)
    logger.info("%s: %d images, %.1f network evaluations and %.3g GFLOPs each", out, num, *cost)


def _sample_all(
    sampler: Sampler, labels: Tensor, seeds: Tensor, batch_size: int
) -> tuple[Tensor, tuple[float, float]]:
    """All images, uint8 [n, 3, R, R], and what one costs: network evaluations and GFLOPs."""
    images, nfe, gflops = [], 0.0, 0.0
    for labels_B, seeds_B in zip(labels.split(batch_size), seeds.split(batch_size), strict=True):
        result = sampler(labels_B, seeds_B)
        images.append(to_uint8(result.images).cpu())
        nfe += float(result.nfe.double().sum())
        gflops += float(result.gflops.sum())
    return torch.cat(images), (nfe / len(labels), gflops / len(labels))


def _check(num: int, seed: int, batch_size: int, out: Path) -> None:
    for name, value in (("num", num), ("batch-size", batch_size)):
        if value < 1:
            raise UserError(f"--{name} must be positive, got {value}")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must lie in [0, 2**63), got {seed}")
    if out.suffix.lower() in _IMAGES:
        raise UserError(f"{out}: a grid is a .png; single images go to a directory")


def _load(model: Path, placement: Placement) -> Generator[Any]:
    """The model, where it runs; only a scale-wise one can be accelerated."""
    device = find_device(placement.device)
    check_accelerators(
        device, int8=placement.int8, compiled=placement.compiled, cuda_graph=placement.cuda_graph
    )
    loaded = load_var(model) if placement.accelerated else load_pipeline(model)
    return loaded.to(device, find_dtype(placement.dtype))


def with_settings(sampler: Any, changes: Mapping[str, Any]) -> Any:
    """A model's own settings with some of them changed.

    Raises:
        UserError: the model has no such setting, or the value is out of range; it is named.
    """
    known = [field.name for field in fields(sampler)]
    for name in changes:
        if name not in known:
            raise UserError(f"{name} is not a setting of this model, which has "
                            f"{', '.join(known)}: leave it out", field=name)  # fmt: skip
    return replace(sampler, **changes)


def labels_in_turns(card: Card, classes: str | None, num: int) -> Tensor:
    """Labels of ``num`` images: the classes take turns. int64 [num]."""
    names = card.class_names
    chosen = list(range(len(names))) if classes is None else find_all(names, classes)
    return torch.tensor([chosen[i % len(chosen)] for i in range(num)])


def _sampler(generator: Any, config: Any, batch: int, placement: Placement) -> Sampler:
    """A function of labels and seeds, warmed up."""
    if not placement.accelerated:
        return lambda labels, seeds: sample(generator, labels, config, seeds)
    sampler, warm_up_s = make_sampler(
        generator, config, batch,
        int8=placement.int8, compiled=placement.compiled, cuda_graph=placement.cuda_graph,
    )  # fmt: skip
    if placement.compiled or placement.cuda_graph:
        logger.info("Warm-up: %.1f s", warm_up_s)
    return sampler


def _is_grid(out: Path) -> bool:
    return out.suffix.lower() == ".png"


def _check_place(out: Path) -> None:
    """Refuse an output that would replace something else."""
    if _is_grid(out) and out.is_dir():
        raise UserError(f"{out} is a directory: name a .png file, or another directory")
    if not _is_grid(out) and out.exists() and not _holds_samples(out):
        raise UserError(f"{out} exists and has no samples: give another directory")


def _holds_samples(directory: Path) -> bool:
    """Whether a directory holds samples and nothing else."""
    return directory.is_dir() and all(
        path.name == "samples.csv" or _SAMPLE.fullmatch(path.name) for path in directory.iterdir()
    )


def _write_directory(
    out: Path, pixels: Tensor, labels: Tensor, seeds: Tensor, names: Sequence[str]
) -> None:
    """One PNG an image and ``samples.csv``: the whole directory or nothing."""
    with atomic_path(out, replace_directory=True) as directory:
        directory.mkdir()
        rows = [("file", "label", "class", "seed")]
        for i, (image, label, seed) in enumerate(
            zip(pixels, labels.tolist(), seeds.tolist(), strict=True)
        ):
            name = f"{i:06d}.png"
            (directory / name).write_bytes(to_png(image))
            rows.append((name, label, names[label], seed))
        with (directory / "samples.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
