"""The models a sweep works on: those given, or a preset's, prepared and trained where missing."""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from srdd.errors import UserError
from srdd.load import load_var
from srdd.presets import Preset
from srdd.var.masks import Mask
from srdd_platform.core.cluster import Cluster
from srdd_platform.data.code_places import codes_dir
from srdd_platform.data.codes import encode
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.shards import prepare
from srdd_platform.evaluation.checks import check_data
from srdd_platform.evaluation.extractors import check_classes, load_extractor
from srdd_platform.evaluation.protocol import MIN_IMAGES
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.train.extend import is_finished
from srdd_platform.train.job import Job, make_job
from srdd_platform.train.launcher import train
from srdd_platform.train.options import Options
from srdd_platform.train.progress import Display, no_display

MASKS: tuple[Mask, ...] = ("markov", "block_causal")  # trained with the same budget


@dataclass(frozen=True, slots=True)
class Models:
    """What a sweep works on."""

    pipeline: Path
    others: tuple[Path, ...]  # models that stand beside it in the report
    data: Path
    weights: Path  # the extractor's


def ready_models(
    args: SweepArgs,
    preset: Preset,
    root: Path,
    out: Path,
    cluster: Cluster,
    console: Console,
    display: Display = no_display,
) -> Models:
    """The models to search: those given, or the preset's, prepared and trained where missing."""
    options = Options(device="cuda" if args.device.startswith("cuda") else "cpu")
    if args.model is not None and args.data is not None:
        pipeline, manifest = load_var(args.model), Manifest.load(args.data)
        check_data(pipeline.card, args.model, manifest, args.data)
        if args.extractor == "classifier":
            check_classes(len(manifest.classes), str(args.data))
        held_out = manifest.splits["val"].num if "val" in manifest.splits else 0
        if held_out < MIN_IMAGES:
            raise UserError(
                f"{args.data} holds {held_out} held-out images; the reference rows need at least "
                f"{MIN_IMAGES}"
            )
        weights = args.weights
        if weights is None:
            weights = out.parent / f"{out.name}-classifier"
            sized = replace(preset, tokenizer=pipeline.tokenizer.config)
            job = make_job("classifier", sized, args.data, weights, options)
            _train(
                [job],
                "a classifier on the data, as the feature extractor",
                cluster,
                console,
                display,
            )
        else:
            load_extractor(args.extractor, weights)  # refuses what would fail in every trial
        return Models(args.model, (), args.data, weights)
    data, tokenizer, classifier = root / "data", root / "tokenizer", root / "classifier"
    if not (data / "manifest.json").exists():
        console.print(f"Preparing images: {args.preset}, {preset.tokenizer.resolution} px")
    prepare(source=args.preset, resolution=preset.tokenizer.resolution, out=data)
    first = [
        make_job("tokenizer", preset, data, tokenizer, options),
        make_job("classifier", preset, data, classifier, options),
    ]
    _train(
        first,
        "the tokenizer, and the classifier whose features measure FID",
        cluster,
        console,
        display,
    )
    if not (codes_dir(data, tokenizer) / "manifest.json").exists():
        console.print("Extracting codes, once for both masks")
        cluster.connect()
        encode(data, tokenizer)
    second = [
        make_job("transformer", preset, data, root / mask, options, tokenizer=tokenizer, mask=mask)
        for mask in MASKS
    ]
    _train(
        second, "the transformers: markov (SDD) and block_causal (VAR)", cluster, console, display
    )
    return Models(root / "markov", (root / "block_causal",), data, classifier)


def _train(
    jobs: list[Job], what: str, cluster: Cluster, console: Console, display: Display
) -> None:
    """Train what is not finished; what is finished must have the same settings."""
    finished = all(is_finished(Path(job.run)) for job in jobs)
    if not finished:
        console.print(f"Training {what}")
    train(jobs, None if finished else cluster.connect(), display)
