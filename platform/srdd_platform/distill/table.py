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
from functools import partial
from pathlib import Path
from typing import Any

import torch

from srdd.load import load_var
from srdd.train.var.held_out import pipeline_quality
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline
from srdd.var.prune import prune_pipeline
from srdd_platform.core.files import read_json, write_bytes, write_json
from srdd_platform.core.runs import model_dir
from srdd_platform.evaluation.evaluator import Evaluator, load_evaluator
from srdd_platform.evaluation.generate import COSTS, GRID_IMAGES, Samples, with_grid
from srdd_platform.evaluation.protocol import (
    FIRST_KID_NOTE,
    EvaluationConfig,
    extractor_sha256,
    stage_key,
    weights_digest,
)
from srdd_platform.evaluation.rows import row_path
from srdd_platform.evaluation.runner import Make, run_missing
from srdd_platform.train.data import ImageData
from srdd_platform.train.job import Job

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
    shared = {
        **asdict(evaluation),
        "data": [job.store().manifest.fingerprint, dict(job.settings.skipped) or None],
        "weights": evaluation.weights and extractor_sha256(Path(evaluation.weights)),
    }
    keys = []
    for spec in specs:
        directory = Path(spec.pipeline)
        model = {
            "model": weights_digest(directory),
            "config": read_json(directory / "transformer" / "config.json"),
        }
        asked = [spec.name, spec.order, spec.pruned, spec.steps]
        keys.append(stage_key(asked, model, config, shared))
    return keys


def load_maker(
    run: Path, config: SamplerConfig, evaluation: EvaluationConfig, job: Job
) -> Make[RowSpec]:
    """What measures models into rows; without the extractor's weights it draws few images.

    Args:
        run: the distillation's directory.
        config: the sampler's settings.
        evaluation: how samples are judged.
        job: a training on the data, which says how that is read.
    """
    unseen = ImageData(job.dataset).held_out(torch.device("cpu"))
    images, labels = unseen.inputs, unseen.labels_n
    evaluator = _load_evaluator(evaluation, job) if evaluation.weights else None
    num = evaluation.num if evaluator else min(GRID_IMAGES, evaluation.num)

    def make(spec: RowSpec, key: str) -> dict[str, Any]:
        pipeline = _load_model(spec).to(evaluation.device)
        schedule, grid = pipeline.tokenizer.schedule, run / "grids" / spec.grid
        if evaluator:
            found = evaluator.evaluate(pipeline, config, grid=grid)
        else:
            found = _cost(pipeline, config, num, evaluation, grid)
        return {
            "key": key,
            "name": spec.name,
            "order": spec.order,
            "steps": spec.steps,
            "patch_nums": ",".join(map(str, schedule.patch_nums)),
            "codes": schedule.length,
            **pipeline_quality(pipeline, images, labels),
            **{name: value for name, value in found.items() if name not in COSTS},
            "extractor": evaluator.extractor.name if evaluator else None,
            "n": num,
            **{name: found[name] for name in COSTS},
            "grid": f"grids/{spec.grid}",
        }

    return make


def _load_model(spec: RowSpec) -> Pipeline:
    """The model of a row, on the CPU."""
    pipeline = load_var(spec.pipeline)
    return prune_pipeline(pipeline, spec.pruned) if spec.pruned else pipeline


def _cost(
    pipeline: Pipeline, config: SamplerConfig, num: int, evaluation: EvaluationConfig, grid: Path
) -> dict[str, float]:
    """What samples cost, with a grid of the first; their quality is not measured."""
    size, seed = evaluation.batch_size, evaluation.seed
    samples = Samples(pipeline, config, n=num, seed=seed, batch_size=size)
    for _ in with_grid(samples, grid):
        pass
    return samples.cost


def _load_evaluator(evaluation: EvaluationConfig, job: Job) -> Evaluator:
    """The evaluator, with the train split as the job reads it."""
    train = job.dataset("train")
    with train.store.filling(train.whole_shards):
        return load_evaluator(evaluation, train)


def run_rows(
    run: Path,
    items: Sequence[tuple[RowSpec, str]],
    config: SamplerConfig,
    evaluation: EvaluationConfig,
    job: Job,
) -> None:
    """Measure models in one task, so that none disturbs another's latency."""
    load = partial(load_maker, run.resolve(), config, evaluation, job)
    run_missing(
        run,
        items,
        load,
        name="measure stages",
        device=evaluation.device,
        threads=job.runtime.threads,
    )


def write_table(
    run: Path, keys: Sequence[str], config: SamplerConfig, evaluation: EvaluationConfig
) -> dict[str, Any]:
    """Compile ``stages.json`` and ``stages.md`` from the rows; returns what the former holds."""
    rows = [read_json(row_path(run, key)) for key in keys]
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


def plain_text(rows: Sequence[dict[str, Any]], note: str) -> str:
    """The table for a terminal, with its note; on a narrow one its lines run on, uncut."""
    headings = [heading for heading, _, _ in COLUMNS]
    lines = [headings, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if heading in TEXT else cell.rjust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        )
        for line in lines
    ]
    return "\n".join([*text, note])
