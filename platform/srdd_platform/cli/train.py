"""The commands ``srdd train tokenizer``, ``transformer``, ``classifier`` and ``distill``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from srdd.var.masks import DEFAULT_MASK, Mask
from srdd_platform.train.options import Options, TokenizerOptions, TransformerOptions

if TYPE_CHECKING:
    from rich.console import Console

    from srdd_platform.train.job import Job

_sub = tyro.conf.subcommand


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """What every training takes."""

    data: str  # shard directory, or its URI
    out: Path  # run directory; the same command again resumes it
    preset: str = "digits"
    training: Options = field(default_factory=Options)
    address: str | None = None  # an existing Ray cluster (host:port or auto); else a local one
    dry_run: bool = False  # say what it would do, take and cost, and end

    def train(
        self,
        kind: Literal["tokenizer", "transformer", "classifier"],
        console: "Console",
        **more: Any,
    ) -> None:
        """Train one model under Ray."""
        from srdd.compiling import check_machine
        from srdd.presets import get_preset
        from srdd_platform.cli.progress import bars
        from srdd_platform.core.ray_session import session
        from srdd_platform.train.extend import extends, is_finished
        from srdd_platform.train.job import make_job
        from srdd_platform.train.launcher import check_start, train

        preset = get_preset(self.preset)
        job = make_job(kind, preset, self.data, self.out, self.training, **more)
        if self.dry_run:
            from srdd_platform.train.dry_run import dry_run

            console.print(dry_run(job), soft_wrap=True)
            return
        if is_finished(self.out) and not extends(job):
            train([job], None)  # refuses other settings
            console.print(f"{self.out} is finished: {self.out / 'model'}", soft_wrap=True)
            return
        check_start(job, self.out)
        if self.address is None:  # the nodes of a cluster are looked at by its workers
            check_machine(job.runtime.device, compiled=job.optim.compile)
        with session(self.address) as cluster:
            if cluster.dashboard:
                console.print(cluster.dashboard, soft_wrap=True)
            if isinstance(self.training, TransformerOptions):
                _encode(self.data, more["tokenizer"], job, self.training, console)
            train([job], cluster, bars(console))
        _print_validation(self.out, console)


def _encode(
    data: str, tokenizer: Path, job: "Job", options: TransformerOptions, console: "Console"
) -> None:
    """Extract the codes that a transformer is trained on, where they are missing."""
    from srdd_platform.data.codes import encode

    codes = Path(job.inputs.codes)
    if options.codes is None and codes.is_relative_to(job.run):
        console.print(f"Codes are kept in {codes}: nothing could be written beside the tokenizer",
                      soft_wrap=True)  # fmt: skip
    encode(
        data, tokenizer, views=options.views, flip=options.flip, reading=options,
        device=options.device, out=codes,
    )  # fmt: skip


def _print_validation(run: Path, console: "Console") -> None:
    from srdd_platform.core.files import read_json

    found = read_json(run / "validation.json")
    text = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    console.print(f"{run / 'model'}: held-out {text}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTokenizer(TrainOptions):
    """Train a multi-scale tokenizer."""

    training: TokenizerOptions = field(default_factory=TokenizerOptions)

    def run(self, console: "Console") -> None:
        """Train it."""
        self.train("tokenizer", console)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTransformer(TrainOptions):
    """Train a transformer on a tokenizer's codes: VAR or SDD, by its mask."""

    training: TransformerOptions = field(default_factory=TransformerOptions)
    tokenizer: Path  # run directory of a finished tokenizer, or a pipeline's (`srdd convert`)
    mask: Mask = DEFAULT_MASK

    def run(self, console: "Console") -> None:
        """Train it, extracting codes where they are missing."""
        self.train("transformer", console, tokenizer=self.tokenizer, mask=self.mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainClassifier(TrainOptions):
    """Train the small classifier whose features measure FID on data that Inception ignores."""

    def run(self, console: "Console") -> None:
        """Train it."""
        self.train("classifier", console)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainDistill(TrainOptions):
    """Distil a model to fewer scales, stage by stage, and compare the stages with it."""

    training: TransformerOptions = field(default_factory=TransformerOptions)
    model: Path  # pipeline or run directory: the parent
    stages: str  # scales of each stage: "1,3,5,8,13,16/1,5,8,13,16"
    stage_steps: int | None = None  # updates of each; default a tenth of the preset's
    cfg: float | None = None  # guidance of the table's samples; default the model's own
    extractor: Literal["classifier", "inception"] = "classifier"  # whose features give the FID
    weights: Path | None = None  # the extractor's: a classifier's run, or a file; none: no FID
    num: int = 1000  # images drawn of each model for its FID
    sample_batch: int = 250  # images drawn at once

    def run(self, console: "Console") -> None:
        """Train the stages, and print the table."""
        from srdd.presets import get_preset
        from srdd_platform.cli.progress import bars
        from srdd_platform.core.location import parse_location
        from srdd_platform.distill.run import (
            Distillation,
            distill,
            dry_run_stages,
            parse_stages,
            stage_steps,
        )
        from srdd_platform.distill.table import plain_text
        from srdd_platform.evaluation.protocol import EvaluationConfig

        preset = get_preset(self.preset)
        evaluation = EvaluationConfig(
            data=str(parse_location(self.data, "--data")), extractor=self.extractor,
            weights=str(self.weights.resolve()) if self.weights else "", num=self.num,
            batch_size=self.sample_batch, device=self.training.device,
        )  # fmt: skip
        steps = stage_steps(preset) if self.stage_steps is None else self.stage_steps
        job = Distillation(
            model=self.model, data=self.data, out=self.out, stages=parse_stages(self.stages),
            steps=steps, options=self.training, evaluation=evaluation, cfg=self.cfg,
        )  # fmt: skip
        if self.dry_run:
            for stage in dry_run_stages(job, preset):
                console.print(stage, soft_wrap=True)
            return
        done = "is finished" if (self.out / "model").is_dir() else "done"
        table = distill(job, preset, self.address, bars(console))
        console.print(plain_text(table["rows"], table["note"]), soft_wrap=True)
        console.print(f"{self.out} {done}: {self.out / 'model'}", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Train:
    """Train a model under Ray Train; the same command again resumes."""

    command: (
        Annotated[TrainTokenizer, _sub("tokenizer")]
        | Annotated[TrainTransformer, _sub("transformer")]
        | Annotated[TrainClassifier, _sub("classifier")]
        | Annotated[TrainDistill, _sub("distill")]
    )

    def run(self, console: "Console") -> None:
        """Run the command chosen."""
        self.command.run(console)
