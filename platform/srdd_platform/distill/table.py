"""The table of a distillation: parent, pruned and distilled models side by side.

::

    rows/KEY.json   one measured model, written once
    stages.json     the rows in order, and what they share
    stages.md       the same as a table
    grids/NAME.png  a grid of each model's first samples

Two things change with the scales: what the tokenizer's codes can hold (PSNR), and how well the
transformer predicts them (NLL). The row of a pruned model that was not trained tells them apart,
and is what a distilled one must beat.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console
from torch import Tensor

from srdd.load import load_var
from srdd.train.var.held_out import reconstruct, tokenizer_quality, transformer_nll
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline
from srdd.var.prune import prune_pipeline
from srdd_platform.core.files import (
    digest,
    read_json,
    sha256_file,
    to_json_bytes,
    write_bytes,
    write_json,
    write_once,
)
from srdd_platform.core.images import grid_png
from srdd_platform.core.runs import model_dir
from srdd_platform.data.dataset import load_images
from srdd_platform.evaluation.evaluator import EvaluationConfig, Evaluator, weights_digest
from srdd_platform.evaluation.generate import GRID_IMAGES, draw_timed
from srdd_platform.evaluation.protocol import FIRST_KID_NOTE
from srdd_platform.train.job import Job
from srdd_platform.train.validation import held_out_images

READ_ME = (
    "Steps count from the parent on; 0 is pruning alone. NLL in nats and PSNR on held-out images. "
    "Each schedule has codes of its own: between schedules NLL per code does not compare, and NLL "
    "per image only beside the PSNR of what the codes hold."
)
NO_FID = "No FID: give --weights, a classifier run (or --extractor inception and its file)."
COLUMNS = (
    ("model", "name", "{}"),
    ("steps", "steps", "{}"),
    ("scales", "patch_nums", "{}"),
    ("codes", "codes", "{}"),
    ("PSNR", "psnr", "{:.2f}"),
    ("NLL/code", "nll", "{:.3f}"),
    ("NLL/image", "nll_per_image", "{:.1f}"),
    ("FID", "fid", "{:.4g}"),
    ("±", "fid_se", "{:.1g}"),
    ("NFE", "nfe", "{:.3g}"),
    ("GFLOPs", "gflops_per_image", "{:.3g}"),
    ("ms", "latency_ms", "{:.1f}"),
)
TEXT = ("model", "scales")  # headings of columns of text


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSpec:
    """One model of the table: a pipeline directory, or what pruning alone makes of it."""

    name: str
    order: int
    pipeline: str
    pruned: tuple[int, ...] = ()  # scales left by pruning; (): as it is
    steps: int = 0  # updates since the parent

    @property
    def grid(self) -> str:
        """The name of its grid's file."""
        return f"{self.name.replace(' ', '_')}.png"


def table_specs(
    parent: Path, stages: Sequence[tuple[int, ...]], runs: Sequence[Path], steps: int
) -> list[RowSpec]:
    """The rows: the parent, and for each stage the parent pruned and the model it made.

    Args:
        parent: pipeline directory.
        stages: the scales of each.
        runs: their run directories.
        steps: updates of one stage.
    """
    specs = [RowSpec(name="parent", order=0, pipeline=str(parent.resolve()))]
    for number, (sides, run) in enumerate(zip(stages, runs, strict=True), 1):
        pruned = replace(specs[0], name=f"pruned {number}", order=2 * number - 1, pruned=sides)
        pipeline = str(model_dir(run).resolve())
        trained = RowSpec(
            name=f"stage {number}", order=2 * number, pipeline=pipeline, steps=number * steps
        )
        specs += [pruned, trained]
    return specs


def row_keys(
    specs: Sequence[RowSpec], config: SamplerConfig, evaluation: EvaluationConfig, job: Job
) -> list[str]:
    """The name of each row: a hash of all that decides it; ``job`` reads the data."""
    weights = evaluation.weights and sha256_file(_weights_file(Path(evaluation.weights)))
    shared = {
        **asdict(evaluation),
        "data": [job.store().manifest.fingerprint, job.settings.get("skipped")],
        "weights": weights,
        "parameters": config.active(),
    }
    return [
        digest(
            {
                **shared,
                "model": weights_digest(Path(spec.pipeline)),
                "config": read_json(Path(spec.pipeline) / "transformer" / "config.json"),
                "row": [spec.name, spec.order, spec.pruned, spec.steps],
            }
        )
        for spec in specs
    ]


def _weights_file(path: Path) -> Path:
    return model_dir(path) / "model.safetensors" if path.is_dir() else path


def held_out(pipeline: Pipeline, images: Tensor, labels: Tensor) -> dict[str, float]:
    """What a pipeline reaches on images that it was not trained on.

    Args:
        pipeline: on its device.
        images: uint8 [n, 3, R, R].
        labels: int64 [n].

    Returns:
        Means over images: ``psnr`` in dB and ``ssim`` of the tokenizer's reconstructions, ``nll``
        and ``nll_<scale>`` in nats a code, ``nll_per_image`` in nats; and ``held_out``, the images.
    """
    codes_nL, decoded = reconstruct(pipeline.tokenizer, images)
    quality = tokenizer_quality(pipeline.tokenizer, images, codes_nL, decoded)
    found = transformer_nll(pipeline.transformer, codes_nL, labels)
    return {
        "held_out": found.pop("n"),
        **{name: quality[name] for name in ("psnr", "ssim") if name in quality},
        **found,
        "nll_per_image": found["nll"] * codes_nL.shape[1],
    }


def measure_rows(
    run: Path,
    specs: Sequence[tuple[RowSpec, str]],
    config: SamplerConfig,
    evaluation: EvaluationConfig,
    job: Job,
) -> None:
    """Measure models one after the other into ``rows/``. Runs in a Ray task.

    Without the extractor's weights there is no FID, and few images are drawn.

    Args:
        run: the distillation's directory.
        specs: the models, with the keys of their rows.
        config: the sampler's settings.
        evaluation: how samples are judged.
        job: a training on the data, which says how that is read.
    """
    if evaluation.device == "cpu":
        torch.set_num_threads(job.threads)
    images, labels = held_out_images(job)
    judge = None
    if evaluation.weights:
        train = job.dataset("train")
        with train.store.filling(train.whole_shards):
            judge = Evaluator(Path(specs[0][0].pipeline), evaluation, load_images(train))
    for spec, key in specs:
        pipeline = load_var(spec.pipeline)
        if spec.pruned:
            pipeline = prune_pipeline(pipeline, spec.pruned)
        pipeline = pipeline.to(evaluation.device)
        schedule = pipeline.transformer.schedule
        num = evaluation.num if judge else min(GRID_IMAGES, evaluation.num)
        drawn = draw_timed(
            pipeline, config, num, evaluation.seed, evaluation.batch_size, evaluation.device
        )
        grid_png(drawn.images[:GRID_IMAGES], run / "grids" / spec.grid)
        row = {
            "key": key,
            "name": spec.name,
            "order": spec.order,
            "steps": spec.steps,
            "patch_nums": ",".join(map(str, schedule.patch_nums)),
            "codes": schedule.length,
            **held_out(pipeline, images, labels),
            **(judge.quality(drawn.images, drawn.labels) if judge else {}),
            "extractor": judge.extractor.name if judge else None,
            "n": num,
            **drawn.cost,
            "grid": f"grids/{spec.grid}",
        }
        write_once(run / "rows" / f"{key}.json", to_json_bytes(row))


def missing_rows(run: Path, specs: Sequence[RowSpec], keys: Sequence[str]) -> list[Any]:
    """The specs whose rows are not on disk, with their keys."""
    pairs = zip(specs, keys, strict=True)
    return [(spec, key) for spec, key in pairs if not (run / "rows" / f"{key}.json").exists()]


def run_rows(
    run: Path,
    missing: Sequence[tuple[RowSpec, str]],
    config: SamplerConfig,
    evaluation: EvaluationConfig,
    job: Job,
) -> None:
    """Measure the rows given in one task, so that none disturbs another's latency."""
    gpus = 1 if evaluation.device == "cuda" else 0
    task = ray.remote(measure_rows).options(
        num_cpus=job.threads, num_gpus=gpus, name="measure stages", max_retries=1
    )
    ray.get(task.remote(run.resolve(), missing, config, evaluation, job))


def write_table(
    run: Path, keys: Sequence[str], config: SamplerConfig, evaluation: EvaluationConfig
) -> dict[str, Any]:
    """Compile ``stages.json`` and ``stages.md`` from the rows; returns what the former holds."""
    rows = [read_json(run / "rows" / f"{key}.json") for key in keys]
    note = _note(rows[0], config, evaluation.device)
    table = {
        "note": note,
        "sampler": config.active(),
        "seed": evaluation.seed,
        "device": evaluation.device,
        "rows": rows,
    }
    write_json(run / "stages.json", table)
    write_bytes(run / "stages.md", markdown(rows, note).encode())
    return table


def _note(row: dict[str, Any], config: SamplerConfig, device: str) -> str:
    """How to read the numbers."""
    text = f"{READ_ME} Held-out images: {row['held_out']:.0f}. Sampling: cfg {config.cfg:g}, "
    text += f"{config.active()['refine_steps']} refinement passes, float32 on {device}. "
    if row["extractor"] is None:
        return text + NO_FID
    text += f"FID of {row['n']} images on features of {row['extractor']}."
    return text if "protocol" in row else f"{text} {FIRST_KID_NOTE}"


def _cells(row: dict[str, Any]) -> list[str]:
    values = [(row.get(name), form) for _, name, form in COLUMNS]
    return ["-" if value is None else form.format(value) for value, form in values]


def markdown(rows: Sequence[dict[str, Any]], note: str) -> str:
    """The table with its note below."""
    lines = [
        "| " + " | ".join(heading for heading, _, _ in COLUMNS) + " |",
        "|" + "|".join("---" if heading in TEXT else "---:" for heading, _, _ in COLUMNS) + "|",
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
    ]
    return "\n".join([*lines, "", note, ""])


def print_table(rows: Sequence[dict[str, Any]], note: str, console: Console) -> None:
    """The table on the terminal; where that is narrow its lines run on, and no number is cut."""
    headings = [heading for heading, _, _ in COLUMNS]
    lines = [headings, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if heading in TEXT else cell.rjust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ]
        console.print("  ".join(cells), soft_wrap=True)
    console.print(note, soft_wrap=True)
