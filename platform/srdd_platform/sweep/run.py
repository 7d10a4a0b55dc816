"""A sweep from nothing to a report: data, models, reference rows, search, best sampler, report.

Every stage looks at what is on disk first, so the same command goes on where it stopped, and
given again when all is done it only prints.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from rich.console import Console

from srdd.load import load_pipeline, load_var
from srdd.presets import get_preset
from srdd.validation import to_dict
from srdd.var.config import SamplerConfig, TransformerConfig
from srdd_platform.core.cluster import Cluster, lazy_cluster
from srdd_platform.core.ray_session import Session
from srdd_platform.core.runs import check_place, model_dir, note, open_run
from srdd_platform.data.manifest import Manifest
from srdd_platform.evaluation.protocol import (
    EvaluationConfig,
    begun_under,
    extractor_sha256,
    weights_digest,
)
from srdd_platform.evaluation.rows import read_rows
from srdd_platform.evaluation.table import compile_table
from srdd_platform.report.page import build_report
from srdd_platform.sweep import console as tables
from srdd_platform.sweep import references
from srdd_platform.sweep.best import BEST_RULE, best_row, row_config, save_best
from srdd_platform.sweep.definition import epsilon, plain
from srdd_platform.sweep.models import Models, ready_models
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.sweep.search import Search, run_search, trial_rows
from srdd_platform.sweep.space import Grid, check_space, extremes, setting
from srdd_platform.train.progress import Display, no_display

CFGS = (0.0, 0.5, 1.0, 2.0)  # of the plain samplers
EPSILONS = (1e-3, 1e-2)
HYPERVOLUME_COST, HYPERVOLUME_FID = 8.0, 2.0  # times plain SDD at the grid's cfg


def run_sweep(
    name: str,
    space: Mapping[str, BaseDistribution],
    grid: Grid,
    args: SweepArgs,
    console: Console,
    base: SamplerConfig | None = None,
    display: Display = no_display,
) -> Path:
    """Run a sweep from whatever is there to its report; returns the sweep directory.

    Raises:
        UserError: an input is wrong; the message says what to do.
    """
    base = base or SamplerConfig()
    check_space(space, base, grid.settings())
    preset = get_preset(args.preset)
    root = Path("runs") / args.preset
    out = args.out or (Path("runs") / args.model.name if args.model else root) / name
    check_place(out)
    with lazy_cluster(args.address, args.device, console) as cluster:
        models = ready_models(args, preset, root, out, cluster, console, display)
        space, grid = searchable(space, grid, load_var(models.pipeline).transformer.config)
        evaluation = EvaluationConfig(
            data=str(models.data.resolve()), extractor=args.extractor,
            weights=str(models.weights.resolve()), num=args.num, seed=args.seed,
            batch_size=args.batch_size, device=args.device, dtype=args.dtype,
            protocol=begun_under(out),
        )  # fmt: skip
        settings, runtime = _settings(name, space, grid, base, models, evaluation, args)
        with open_run(out, f"sweep {name}", settings, runtime):
            _search(space, grid, base, args, models, evaluation, out, cluster, console)
            compile_table(out, type(base))
            report = build_report(out)
    _print_outcome(out, report, console)
    return out


def searchable(
    space: Mapping[str, BaseDistribution], grid: Grid, model: TransformerConfig
) -> tuple[Mapping[str, BaseDistribution], Grid]:
    """The space and the grid that a model has: without guidance, if it is unconditional."""
    if not model.unconditional:
        return space, grid
    return {name: of for name, of in space.items() if name != "cfg"}, replace(grid, cfg=0.0)


def _settings(
    name: str,
    space: Mapping[str, BaseDistribution],
    grid: Grid,
    base: SamplerConfig,
    models: Models,
    evaluation: EvaluationConfig,
    args: SweepArgs,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides a sweep's rows, and what does not."""
    settings = {
        "sweep": name,
        "space": {k: json.loads(distribution_to_json(v)) for k, v in space.items()},
        "base": to_dict(base),
        "grid": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(grid).items()},
        "model": weights_digest(model_dir(models.pipeline)),
        "others": [weights_digest(model_dir(path)) for path in models.others],
        "data": Manifest.load(models.data).fingerprint,
        "extractor": [args.extractor, extractor_sha256(models.weights)[:16]],
        "num": args.num,
        "seed": args.seed,
        "device": args.device,
        "dtype": args.dtype,
        "best_rule": BEST_RULE,
        "protocol": evaluation.protocol,
    }
    runtime = {
        "model": str(models.pipeline),
        "data": str(models.data),
        "trials": args.trials,
        "batch_size": evaluation.batch_size,
    }
    return settings, runtime


def _search(
    space: Mapping[str, BaseDistribution],
    grid: Grid,
    base: SamplerConfig,
    args: SweepArgs,
    models: Models,
    evaluation: EvaluationConfig,
    out: Path,
    cluster: Cluster,
    console: Console,
) -> None:
    """Reference rows, trials, then the rows that need the best trial."""
    weights = extractor_sha256(models.weights)[:16]
    loaded = load_var(models.pipeline)
    first = [
        {name: value for name, value in params.items() if name in space}
        for params in grid.settings()
    ]
    for config in [base, *(setting(base, params) for params in [*first, *extremes(space)])]:
        loaded.check_settings(config)
    compared = [*plain(cfg=CFGS), *epsilon(*EPSILONS, cfg=grid.cfg)]
    others = {path: load_pipeline(path) for path in models.others}
    specs = references.before_search({models.pipeline: loaded, **others}, compared)
    shared = (out, models.pipeline, evaluation)

    def refer(specs: list[references.ReferenceSpec]) -> None:
        if wanted := references.missing_references(*shared, specs, weights):
            slots, threads = _slots(args, cluster.connect())
            references.run_references(*shared, wanted, slots=slots, threads=threads)

    if references.missing_references(*shared, specs, weights):
        console.print("Evaluating the reference rows: real images, untrained, plain VAR and SDD")
    refer(specs)
    _fix_hypervolume(out, grid)
    if len(trial_rows(out)) < args.trials:
        console.print(
            f"Searching: {args.trials} distinct settings, {args.num} images each, "
            f"{len(trial_rows(out))} done"
        )
        slots, threads = _slots(args, cluster.connect())
        search = Search(
            directory=str(out.resolve()), pipeline=str(models.pipeline.resolve()),
            space=dict(space), base=base, first=first, trials=args.trials,
            evaluation=evaluation, slots=slots, threads=threads,
        )  # fmt: skip
        with tables.live(args.trials, trial_rows(out), console) as on_row:
            complete = run_search(search, on_row)
        if not complete:
            console.print("The space has no further distinct setting.")
    best = best_row(out)
    if best is not None:
        config = row_config(best)
        save_best(out, models.pipeline, best, config)
        num_real = Manifest.load(models.data).splits["val"].num
        refer(references.after_search(loaded, config, best["key"], num_real, order=len(specs)))


def _fix_hypervolume(out: Path, grid: Grid) -> None:
    """Fix the hypervolume's reference point before the search: multiples of the plain sampler."""
    plain = [
        row
        for row in read_rows(out)
        if row["kind"] == "reference" and row["status"] == "ok" and row["refine_steps"] == 0
        and row["cfg"] == grid.cfg and row["name"].startswith("plain")
    ]  # fmt: skip
    if plain:
        base = min(plain, key=lambda row: row["order"])
        point = {
            "gflops_per_image": HYPERVOLUME_COST * base["gflops_per_image"],
            "fid": HYPERVOLUME_FID * base["fid"],
        }
        note(out, "hypervolume_reference", point)


def _slots(args: SweepArgs, cluster: Session) -> tuple[int, int]:
    """Trials at once and CPU threads of each."""
    total = cluster.total
    if args.device.startswith("cuda"):
        cluster.require(gpus=1)
        return args.slots or max(1, int(total.get("GPU", 1))), 1
    cpus = max(1, int(total.get("CPU", 1)))
    slots = args.slots or cpus
    cluster.require(cpus=slots)
    return slots, max(1, cpus // slots)


def _print_outcome(out: Path, report: Path, console: Console) -> None:
    """The frontier, where the report is, and the command that serves the best."""
    rows = read_rows(out)
    tables.print_frontier(rows, console)
    for row in (row for row in rows if row["status"] == "failed"):
        console.print(f"failed: {row['key']}: {row['error']}", style="red")
    console.print(f"Report:  {report}", soft_wrap=True)
    if (out / "best").exists():
        console.print(f"Best:    srdd serve {out / 'best'} --port 8000", soft_wrap=True)
