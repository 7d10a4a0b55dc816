"""A sweep from nothing to a report: data, models, reference rows, search, best sampler, report.

Every stage looks at what is on disk first, so the same command goes on where it stopped, and
given again when all is done it only prints.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.distributions import BaseDistribution, distribution_to_json
from rich.console import Console

from srdd.config import SamplerConfig
from srdd.errors import UserError
from srdd.fields import from_dict, to_dict
from srdd.masks import Mask
from srdd.pipeline import load_pipeline
from srdd.presets import Preset, get_preset
from srdd_platform import references, tables
from srdd_platform.codes import codes_dir, encode
from srdd_platform.data import Manifest, prepare
from srdd_platform.evaluate import EvaluationConfig, weights_digest
from srdd_platform.files import atomic_path, digest, sha256_file, write_json
from srdd_platform.launch import Options, is_finished, make_job, train
from srdd_platform.ray_session import Session, session
from srdd_platform.report import build_report
from srdd_platform.rows import PARAMETERS, compile_table, frontier, read_rows
from srdd_platform.runs import model_dir, note, open_run
from srdd_platform.search import Search, check_space, run_search, trial_rows

MASKS: tuple[Mask, ...] = ("markov", "block_causal")  # trained with the same budget
HYPERVOLUME_COST, HYPERVOLUME_FID = 8.0, 2.0  # times plain SDD at the grid's cfg
BEST_RULE = "lowest FID of all trials; the cheaper one of equals"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Trials made first, so that the figures have their lines."""

    cfg: float
    feedback: str
    thresholds: tuple[float, ...]
    refine_steps: tuple[int, ...]

    def settings(self) -> list[dict[str, Any]]:
        """The settings of the grid."""
        return [
            {
                "cfg": self.cfg, "feedback": self.feedback,
                "resample_threshold": threshold, "refine_steps": steps,
            }
            for steps in self.refine_steps
            for threshold in self.thresholds
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepArgs:
    """Options of every sweep. With none at all the digits preset runs from data to report."""

    out: Path | None = None  # sweep directory; default runs/<preset>/<sweep>
    model: Path | None = None  # search this pipeline instead of training the preset's
    data: Path | None = None  # its shards (srdd data prepare); needed with --model
    extractor: str = "classifier"  # whose features are compared: classifier or inception
    weights: Path | None = None  # the extractor's; without, a classifier is trained on the data
    trials: int = 24  # distinct rows; a larger number extends a finished sweep
    num: int = 1000  # images a row, the same number of each class
    seed: int = 0
    preset: str = "digits"
    address: str | None = None  # an existing Ray cluster (host:port or auto); else a local one
    slots: int | None = None  # trials at once; default one a CPU, or one a GPU
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 250  # images drawn at once

    def __post_init__(self) -> None:
        for name in ("trials", "num", "batch_size", "slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {value}")
        if (self.model is None) != (self.data is None):
            raise UserError("--model and --data go together: the model and its prepared images")
        if self.model is None and self.weights is not None:
            raise UserError("--weights goes with --model and --data")
        if self.extractor not in ("classifier", "inception"):
            raise UserError(f"--extractor must be classifier or inception, got {self.extractor!r}")
        if self.extractor == "inception" and self.weights is None:
            raise UserError("--extractor inception needs --weights FILE")
        for name in ("model", "data", "weights"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise UserError(f"--{name} {path} does not exist")


@dataclass(frozen=True, slots=True)
class Models:
    """What a sweep works on."""

    pipeline: Path
    others: tuple[Path, ...]  # models that stand beside it in the report
    data: Path
    weights: Path  # the extractor's


class Cluster:
    """Ray, started when first needed: a sweep that is finished needs none."""

    def __init__(self, args: SweepArgs, console: Console) -> None:
        self._args = args
        self._console = console
        self._context: Any = None

    def connect(self) -> Session:
        """Start or join Ray, once."""
        if self._context is None:
            self._context = session(self._args.address)
            self._session: Session = self._context.__enter__()
            if self._session.dashboard_url:
                self._console.print(
                    f"Ray dashboard: {self._session.dashboard_url} "
                    "(it asks once for the token that `ray get-auth-token` prints)",
                    soft_wrap=True,
                )
        return self._session

    def close(self) -> None:
        """Leave Ray if it was joined."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None


@contextmanager
def _cluster(args: SweepArgs, console: Console) -> Iterator[Cluster]:
    cluster = Cluster(args, console)
    try:
        yield cluster
    finally:
        cluster.close()


def run_sweep(
    name: str,
    space: Mapping[str, BaseDistribution],
    grid: Grid,
    args: SweepArgs,
    console: Console,
    base: SamplerConfig | None = None,
) -> Path:
    """Run a sweep from whatever is there to its report; returns the sweep directory.

    Raises:
        UserError: an input is wrong; the message says what to do.
    """
    base = base or SamplerConfig()
    check_space(space, base)
    preset = get_preset(args.preset)
    root = Path("runs") / args.preset
    out = args.out or root / name
    with _cluster(args, console) as cluster:
        models = _models(args, preset, root, out, cluster, console)
        evaluation = EvaluationConfig(
            data=str(models.data.resolve()), extractor=args.extractor,
            weights=str(models.weights.resolve()), num=args.num, seed=args.seed,
            batch_size=args.batch_size, device=args.device, dtype=args.dtype,
        )  # fmt: skip
        settings, runtime = _settings(name, space, grid, base, models, evaluation, args)
        with open_run(out, f"sweep {name}", settings, runtime):
            _search(space, grid, base, args, models, evaluation, out, cluster, console)
            table = compile_table(out)
            report = build_report(out)
    _print_outcome(table, out, report, console)
    return out


def _models(
    args: SweepArgs, preset: Preset, root: Path, out: Path, cluster: Cluster, console: Console
) -> Models:
    """The models to search: those given, or the preset's, prepared and trained where missing."""
    options = Options(seed=args.seed, device="cuda" if args.device.startswith("cuda") else "cpu")
    if args.model is not None and args.data is not None:
        load_pipeline(args.model)  # refuses what is no pipeline before anything starts
        weights = args.weights
        if weights is None:
            weights = out.parent / f"{out.name}-classifier"
            if not is_finished(weights):
                sized = replace(
                    preset,
                    tokenizer=load_pipeline(args.model).tokenizer.config,
                )
                job = make_job("classifier", sized, args.data, weights, options)
                console.print("Training a classifier on the data, as the feature extractor")
                train([job], cluster.connect(), console)
        return Models(args.model, (), args.data, weights)
    data, tokenizer, classifier = root / "data", root / "tokenizer", root / "classifier"
    if not (data / "manifest.json").exists():
        console.print(f"Preparing images: {args.preset}, {preset.tokenizer.resolution} px")
    prepare(source=args.preset, resolution=preset.tokenizer.resolution, out=data)
    first = [
        make_job("tokenizer", preset, data, tokenizer, options),
        make_job("classifier", preset, data, classifier, options),
    ]
    if not all(is_finished(Path(job.run)) for job in first):
        console.print("Training the tokenizer, and the classifier whose features measure FID")
        train(first, cluster.connect(), console)
    if not (codes_dir(data, tokenizer) / "manifest.json").exists():
        console.print("Extracting codes, once for both masks")
        cluster.connect()
        encode(data, tokenizer)
    second = [
        make_job("transformer", preset, data, root / mask, options, tokenizer=tokenizer, mask=mask)
        for mask in MASKS
    ]
    if not all(is_finished(Path(job.run)) for job in second):
        console.print("Training the transformers: markov (SDD) and block_causal (VAR)")
        train(second, cluster.connect(), console)
    return Models(root / "markov", (root / "block_causal",), data, classifier)


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
        "extractor": [args.extractor, _extractor_digest(models.weights)],
        "num": args.num,
        "seed": args.seed,
        "device": args.device,
        "dtype": args.dtype,
        "best_rule": BEST_RULE,
    }
    runtime = {
        "model": str(models.pipeline),
        "data": str(models.data),
        "trials": args.trials,
        "batch_size": evaluation.batch_size,
    }
    return settings, runtime


def _extractor_digest(weights: Path) -> str:
    """The hash of an extractor's weights: a file, or a model or run directory."""
    path = weights if weights.is_file() else model_dir(weights) / "model.safetensors"
    if not path.exists():
        raise UserError(f"{weights} holds no finished classifier")
    return sha256_file(path)[:16]


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
    weights = _extractor_digest(models.weights)
    loaded = load_pipeline(models.pipeline)
    guided = not loaded.transformer.config.unconditional
    specs = references.before_search(models.pipeline, models.others, grid.cfg, guided=guided)
    shared = (out, models.pipeline, evaluation)

    def refer(wanted: list[references.ReferenceSpec]) -> None:
        if references.missing_references(*shared, wanted, weights):
            free = cluster.connect()
            slots, threads = _slots(args, free)
            references.run_references(
                *shared, wanted, weights=weights, slots=slots, threads=threads
            )

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
            space=dict(space), base=base, first=grid.settings(), trials=args.trials,
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
        refer(references.after_search(config, num_real, order=len(specs)))


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


def best_row(directory: Path) -> dict[str, Any] | None:
    """The trial of lowest FID, if any succeeded."""
    good = [row for row in trial_rows(directory) if row["status"] == "ok"]
    return min(good, key=lambda r: (r["fid"], r["gflops_per_image"], r["key"]), default=None)


def row_config(row: Mapping[str, Any]) -> SamplerConfig:
    """The sampler settings of a row; inactive ones take their defaults."""
    known = {field.name for field in fields(SamplerConfig)}
    values = {name: row[name] for name in PARAMETERS if name in known and row[name] is not None}
    if "patch_nums" in values:
        values["patch_nums"] = [int(side) for side in values["patch_nums"].split(",")]
    return from_dict(SamplerConfig, values, "row")


def save_best(
    directory: Path, pipeline: Path, row: Mapping[str, Any], config: SamplerConfig
) -> None:
    """Write ``best/``: the searched pipeline with the best trial's settings, and why it is."""
    target = directory / "best"
    selection = {
        "rule": BEST_RULE,
        "row": row["key"],
        "fid": row["fid"],
        "extractor": row["extractor"],
        "model": digest(weights_digest(model_dir(pipeline))),
    }
    path = target / "selection.json"
    if path.exists() and json.loads(path.read_text()) == selection:
        return
    with atomic_path(target) as temporary:
        shutil.copytree(model_dir(pipeline), temporary)
        write_json(temporary / "sampler.json", to_dict(config))
        write_json(temporary / "selection.json", selection)


def _print_outcome(table: pd.DataFrame, out: Path, report: Path, console: Console) -> None:
    """The frontier, where the report is, and the command that serves the best."""
    tables.print_frontier(frontier(table), table, console)
    failed = [row for row in read_rows(out) if row["status"] == "failed"]
    for row in failed:
        console.print(f"failed: {row['key']}: {row['error']}", style="red")
    console.print(f"Report:  {report}", soft_wrap=True)
    if (out / "best").exists():
        console.print(f"Best:    srdd serve {out / 'best'} --port 8000", soft_wrap=True)
