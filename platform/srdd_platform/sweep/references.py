"""Reference rows: what the trials are to be read against.

Real images show the floor, the tokenizer's reconstructions the ceiling it sets, an untrained
model the other end; plain VAR and SDD at several guidance weights and epsilon-truncation, which
costs no extra pass, are the baselines of every claim about resampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
import torch

from srdd.load import load_var
from srdd.var.config import SamplerConfig
from srdd_platform.core.files import digest
from srdd_platform.core.runs import model_dir
from srdd_platform.data.dataset import load_arrays
from srdd_platform.evaluation.evaluator import EvaluationConfig, Evaluator, weights_digest
from srdd_platform.evaluation.rows import read_rows, write_row

What = Literal["held-out", "reconstruction", "untrained", "sampler"]
CFGS = (0.0, 0.5, 1.0, 2.0)  # of the plain samplers
EPSILONS = (1e-3, 1e-2)
BEST_SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceSpec:
    """One reference row to be made."""

    name: str
    order: int
    what: What
    config: SamplerConfig = field(default_factory=SamplerConfig)
    pipeline: str = ""  # another model's directory
    num: int | None = None
    seed: int | None = None


def before_search(
    pipeline: Path, others: Sequence[Path], grid_cfg: float, *, guided: bool = True
) -> list[ReferenceSpec]:
    """The rows that do not need the search's outcome."""
    specs: list[dict[str, Any]] = [
        {"name": "real, held out", "what": "held-out"},
        {"name": "tokenizer reconstruction of held out", "what": "reconstruction"},
        {"name": "untrained", "what": "untrained"},
    ]
    cfgs = CFGS if guided else (0.0,)
    epsilon_cfg = grid_cfg if guided else 0.0
    for directory in (pipeline, *others):
        mask = load_var(directory).transformer.config.mask
        family = {"markov": "SDD", "block_causal": "VAR"}.get(mask, mask)
        path = "" if directory == pipeline else str(model_dir(directory).resolve())
        specs += [
            {
                "name": f"plain {family} ({mask}), cfg {cfg:g}",
                "what": "sampler",
                "config": SamplerConfig(cfg=cfg),
                "pipeline": path,
            }
            for cfg in cfgs
        ]
    specs += [
        {
            "name": f"epsilon-truncation {epsilon:g}, cfg {epsilon_cfg:g}",
            "what": "sampler",
            "config": SamplerConfig(cfg=epsilon_cfg, epsilon=epsilon),
        }
        for epsilon in EPSILONS
    ]
    return [ReferenceSpec(order=order, **spec) for order, spec in enumerate(specs)]


def after_search(best: SamplerConfig, key: str, num: int, order: int) -> list[ReferenceSpec]:
    """The best setting, row ``key``, at the held-out split's size, and the untrained model."""
    rows = [
        ReferenceSpec(
            name=f"best setting ({key[:6]}), n={num}, seed {seed}", what="sampler", config=best,
            order=order + i, num=num, seed=seed,
        )
        for i, seed in enumerate(BEST_SEEDS)
    ]  # fmt: skip
    untrained = ReferenceSpec(
        name=f"untrained, n={num}", what="untrained", order=order + len(rows), num=num
    )
    return [*rows, untrained]


def spec_key(spec: ReferenceSpec, model: str, evaluation: EvaluationConfig, weights: str) -> str:
    """The row's key: a hash of all that decides it."""
    other = weights_digest(Path(spec.pipeline)) if spec.pipeline else model
    return digest(
        {
            "reference": [spec.name, spec.what, spec.num, spec.seed],
            "model": other,
            "parameters": spec.config.active(),
            "n": evaluation.num,
            "seed": evaluation.seed,
            "weights": weights,
            "protocol": evaluation.protocol,
        }
    )


def make_rows(
    directory: Path,
    pipeline: Path,
    evaluation: EvaluationConfig,
    specs: Sequence[tuple[ReferenceSpec, str]],
    threads: int,
) -> None:
    """Evaluate reference rows, one after the other, into ``rows/``. Runs in a Ray task."""
    if evaluation.device == "cpu":
        torch.set_num_threads(threads)
    evaluator = Evaluator(pipeline, evaluation)
    real, labels = load_arrays(Path(evaluation.data), "val")
    for spec, key in specs:
        grid = directory / "grids" / f"{key}.png"
        if spec.what in ("held-out", "reconstruction"):
            images = real if spec.what == "held-out" else evaluator.reconstruct(real)
            row = evaluator.judge(
                images, labels, key=key, name=spec.name, order=spec.order, grid=grid
            )
        else:
            model = None
            if spec.what == "untrained":
                model = evaluator.untrained()
            elif spec.pipeline:
                model = load_var(spec.pipeline).to(
                    evaluation.device, getattr(torch, evaluation.dtype)
                )
            row = evaluator.trial(
                spec.config, order=spec.order, kind="reference", name=spec.name, pipeline=model,
                key=key, n=spec.num, seed=spec.seed, grid=grid,
            )  # fmt: skip
        write_row(directory, row)


def run_references(
    directory: Path,
    pipeline: Path,
    evaluation: EvaluationConfig,
    specs: Sequence[ReferenceSpec],
    *,
    weights: str,
    slots: int,
    threads: int,
) -> None:
    """Make the rows that are not there yet, ``slots`` at a time. Ray must be connected."""
    missing = missing_references(directory, pipeline, evaluation, specs, weights)
    if not missing:
        return
    gpus = 1 if evaluation.device.startswith("cuda") else 0
    task = ray.remote(make_rows).options(
        num_cpus=threads, num_gpus=gpus, name="evaluate references", max_retries=1
    )
    parts = [missing[i::slots] for i in range(slots) if missing[i::slots]]
    paths = directory.resolve(), pipeline.resolve()  # Ray may have been started in another folder
    ray.get([task.remote(*paths, evaluation, part, threads) for part in parts])


def missing_references(
    directory: Path,
    pipeline: Path,
    evaluation: EvaluationConfig,
    specs: Sequence[ReferenceSpec],
    weights: str,
) -> list[tuple[ReferenceSpec, str]]:
    """The specs whose rows are not on disk, with their keys."""
    model = weights_digest(model_dir(pipeline))
    have = {row["key"] for row in read_rows(directory)}
    keyed = [(spec, spec_key(spec, model, evaluation, weights)) for spec in specs]
    return [(spec, key) for spec, key in keyed if key not in have]
