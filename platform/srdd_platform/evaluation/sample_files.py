"""``srdd sample``: images of a pipeline as a grid, or as single PNGs with a table."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

from srdd.devices import find_device, find_dtype
from srdd.errors import UserError
from srdd.images import grid
from srdd.load import load_var
from srdd.rng import image_seeds
from srdd.var.accelerate import check_accelerators, make_sampler
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline
from srdd_platform.core.files import atomic_path, write_bytes
from srdd_platform.core.images import to_png, to_uint8
from srdd_platform.core.parsing import integers

if TYPE_CHECKING:
    from srdd_platform.cli.main import Sample

_SAMPLE = re.compile(r"\d{6,}\.png")
_IMAGES = (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
SETTINGS = (
    "cfg", "cfg_ramp", "top_k", "top_p", "epsilon", "refine_steps", "resample",
    "resample_threshold", "feedback",
)  # fmt: skip


def resolve(command: "Sample", config: SamplerConfig) -> SamplerConfig:
    """The pipeline's settings with those given on the command line."""
    given = {name: getattr(command, name) for name in SETTINGS}
    changes = {name: value for name, value in given.items() if value is not None}
    if command.patch_nums is not None:
        changes["patch_nums"] = integers(command.patch_nums, "patch_nums")
    return replace(config, **changes)


def pick_labels(pipeline: Pipeline, classes: str | None, num: int) -> Tensor:
    """Labels of ``num`` images: the classes take turns. int64 [num]."""
    every = list(range(len(pipeline.class_names)))
    chosen = every if classes is None else pipeline.labels(classes)
    return torch.tensor([chosen[i % len(chosen)] for i in range(num)])


def draw_to(command: "Sample", console: Console) -> None:
    """Draw images and write them.

    Raises:
        UserError: the model, a class or a setting is wrong.
    """
    for name, value in (("num", command.num), ("batch-size", command.batch_size)):
        if value < 1:
            raise UserError(f"--{name} must be positive, got {value}")
    if not 0 <= command.seed < 2**63:
        raise UserError(f"--seed must lie in [0, 2**63), got {command.seed}")
    if command.out.suffix.lower() in _IMAGES:
        raise UserError(f"{command.out}: a grid is a .png; single images go to a directory")
    target = find_device(command.device)
    check_accelerators(
        target, int8=command.int8, compiled=command.compile, cuda_graph=command.cuda_graph
    )
    pipeline = load_var(command.model).to(target, find_dtype(command.dtype))
    config = resolve(command, pipeline.sampler)
    labels = pick_labels(pipeline, command.classes, command.num)
    seeds = image_seeds(command.seed, 0, command.num)
    as_grid = command.out.suffix.lower() == ".png"
    if as_grid and command.out.is_dir():
        raise UserError(f"{command.out} is a directory: name a .png file, or another directory")
    if not as_grid and command.out.exists() and not _ours(command.out):
        raise UserError(f"{command.out} exists and holds no samples: give another directory")
    sampler, warm_up_s = make_sampler(
        pipeline, config, min(command.num, command.batch_size),
        int8=command.int8, compiled=command.compile, cuda_graph=command.cuda_graph,
    )  # fmt: skip
    if command.compile or command.cuda_graph:
        console.print(f"Warm-up: {warm_up_s:.1f} s")
    images, nfe, gflops = [], 0.0, 0.0
    for begin in range(0, command.num, command.batch_size):
        rows = slice(begin, begin + command.batch_size)
        result = sampler(labels[rows], seeds[rows])
        images.append(to_uint8(result.images).cpu())
        nfe += float(result.nfe.double().sum())
        gflops += float(result.gflops.sum())
    pixels = torch.cat(images)
    if as_grid:
        write_bytes(command.out, to_png(grid(pixels)))
    else:
        _write_directory(command.out, pixels, labels, seeds, pipeline.class_names)
    console.print(
        f"{command.out}: {command.num} images, {nfe / command.num:.1f} network evaluations and "
        f"{gflops / command.num:.3g} GFLOPs each",
        soft_wrap=True,
    )


def _ours(directory: Path) -> bool:
    """Whether a directory holds samples of ours and nothing else."""
    return directory.is_dir() and all(
        path.name == "samples.csv" or _SAMPLE.fullmatch(path.name) for path in directory.iterdir()
    )


def _write_directory(
    out: Path, pixels: Tensor, labels: Tensor, seeds: Tensor, names: Sequence[str]
) -> None:
    """One PNG an image and ``samples.csv``: the whole directory or nothing."""
    with atomic_path(out, replace_directory=True) as directory:
        directory.mkdir()
        files = [f"{i:06d}.png" for i in range(len(pixels))]
        for name, image in zip(files, pixels, strict=True):
            (directory / name).write_bytes(to_png(image))
        table = pd.DataFrame(
            {
                "file": files,
                "label": labels.tolist(),
                "class": [names[i] for i in labels.tolist()],
                "seed": seeds.tolist(),
            }
        )
        table.to_csv(directory / "samples.csv", index=False)
