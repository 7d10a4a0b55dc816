"""The command line: ``srdd``, built from typed dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from srdd.compiling import check_machine
from srdd.errors import UserError
from srdd.presets import get_preset
from srdd.var.masks import Mask
from srdd_platform.cli.command_errors import guarded
from srdd_platform.cli.command_line import parse_command
from srdd_platform.cli.convert_options import Convert, Export
from srdd_platform.cli.data import Data
from srdd_platform.cli.log_output import log_to
from srdd_platform.cli.terminal import Terminal
from srdd_platform.core.interrupts import end_on_sigterm
from srdd_platform.core.option_names import as_option
from srdd_platform.core.ray_settings import check_settings
from srdd_platform.train.options import Options, TokenizerOptions, TransformerOptions


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
        self, kind: Literal["tokenizer", "transformer", "classifier"], console: Console, **more: Any
    ) -> None:
        """Train one model under Ray."""
        from srdd_platform.core.ray_session import session
        from srdd_platform.core.runs import check_place
        from srdd_platform.data.codes import encode
        from srdd_platform.train.extend import extends, is_finished
        from srdd_platform.train.job import make_job
        from srdd_platform.train.launcher import train

        preset = get_preset(self.preset)
        job = make_job(kind, preset, self.data, self.out, self.training, **more)
        if self.dry_run:
            from srdd_platform.train.dry_run import dry_run

            dry_run(job, console)
            return
        if is_finished(self.out) and not extends(job):
            train([job], None, console)  # refuses other settings
            console.print(f"{self.out} is finished: {self.out / 'model'}", soft_wrap=True)
            return
        check_place(self.out)
        if self.address is None:  # the nodes of a cluster are looked at by its workers
            check_machine(job.device, compiled=job.settings["optim"]["compile"])
        with session(self.address) as cluster:
            if cluster.dashboard:
                console.print(cluster.dashboard, soft_wrap=True)
            if isinstance(self.training, TransformerOptions):
                if self.training.codes is None and Path(job.codes).is_relative_to(job.run):
                    console.print(f"Codes are kept in {job.codes}: nothing could be written beside "
                                  "the tokenizer", soft_wrap=True)  # fmt: skip
                encode(
                    self.data, more["tokenizer"], views=self.training.views,
                    flip=self.training.flip, reading=self.training, device=self.training.device,
                    out=Path(job.codes),
                )  # fmt: skip
            train([job], cluster, console)
        _print_validation(self.out, console)


def _print_validation(run: Path, console: Console) -> None:
    from srdd_platform.core.files import read_json

    found = read_json(run / "validation.json")
    text = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    console.print(f"{run / 'model'}: held-out {text}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTokenizer(TrainOptions):
    """Train a multi-scale tokenizer."""

    training: TokenizerOptions = field(default_factory=TokenizerOptions)

    def run(self, console: Console) -> None:
        """Train it."""
        self.train("tokenizer", console)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTransformer(TrainOptions):
    """Train a transformer on a tokenizer's codes: VAR (block_causal) or SDD (markov)."""

    training: TransformerOptions = field(default_factory=TransformerOptions)
    tokenizer: Path  # run directory of a finished tokenizer, or a pipeline's (`srdd convert`)
    mask: Mask = "markov"

    def run(self, console: Console) -> None:
        """Train it, extracting codes where they are missing."""
        self.train("transformer", console, tokenizer=self.tokenizer, mask=self.mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainClassifier(TrainOptions):
    """Train the small classifier whose features measure FID on data that Inception ignores."""

    def run(self, console: Console) -> None:
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

    def run(self, console: Console) -> None:
        """Train the stages, and print the table."""
        from srdd_platform.core.location import parse_location
        from srdd_platform.distill.run import (
            Distillation,
            distill,
            dry_run_stages,
            parse_stages,
            stage_steps,
        )
        from srdd_platform.evaluation.evaluator import EvaluationConfig

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
            dry_run_stages(job, preset, console)
        else:
            distill(job, preset, self.address, console)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Draw images: a grid (--out grid.png), or single PNGs with a table (--out DIR)."""

    model: Path  # pipeline or run directory
    out: Path
    classes: str | None = None  # take turns: hen,3 or '"lamp, desk",index:2'; default: all
    num: int = 16  # images in all
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    int8: bool = False  # linears of the blocks in 8-bit integers: faster, not exact
    compile: bool = False  # torch.compile: a warm-up first, so for many images
    cuda_graph: bool = False  # the whole loop as one launch; without refinement
    batch_size: int = 64
    cfg: float | None = None  # guidance weight; this and the rest override the pipeline's
    cfg_ramp: Literal["linear", "constant", "window"] | None = None
    top_k: int | None = None
    top_p: float | None = None
    epsilon: float | None = None
    refine_steps: int | None = None
    resample: Literal["masked", "simple"] | None = None
    resample_threshold: float | None = None
    feedback: Literal["updated", "kept", "none"] | None = None
    patch_nums: str | None = None  # "1,2,4": scales visited

    def run(self, console: Console) -> None:
        """Draw and write."""
        from srdd_platform.cli.sample import draw_to

        draw_to(self, console)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Rebuild a sweep's report from its table, configuration and grids."""

    directory: tyro.conf.Positional[Path]

    def run(self, console: Console) -> None:
        """Build it."""
        from srdd_platform.report.page import build_report

        console.print(f"Report: {build_report(self.directory)}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """Serve a pipeline over HTTP with Ray Serve."""

    directory: tyro.conf.Positional[Path]  # pipeline or run directory
    port: int = 8000
    host: str = "127.0.0.1"
    replicas: int = 1
    max_batch: int = 32  # images that share a batch
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    address: str | None = None  # an existing Ray cluster (host:port or auto); else a local one

    def run(self, console: Console) -> None:
        """Serve until interrupted."""
        from srdd_platform.serving.app import run
        from srdd_platform.serving.deployment import DRAIN_S

        def ready(url: str) -> None:
            console.print(f"Serving {self.directory} at {url}", soft_wrap=True)

        def stopping() -> None:
            console.print(
                f"Stopping: requests in progress have {DRAIN_S:g} s; a second signal ends at once",
                soft_wrap=True,
            )

        run(
            self.directory, host=self.host, port=self.port, address=self.address,
            replicas=self.replicas, max_batch=self.max_batch, device=self.device,
            dtype=self.dtype, ready=ready, stopping=stopping,
        )  # fmt: skip


_sub = tyro.conf.subcommand


@dataclass(frozen=True, slots=True)
class Train:
    """Train a model under Ray Train; the same command again resumes."""

    command: (
        Annotated[TrainTokenizer, _sub("tokenizer")]
        | Annotated[TrainTransformer, _sub("transformer")]
        | Annotated[TrainClassifier, _sub("classifier")]
        | Annotated[TrainDistill, _sub("distill")]
    )

    def run(self, console: Console) -> None:
        """Run the command chosen."""
        self.command.run(console)


Command = (
    Annotated[Data, _sub("data")]
    | Annotated[Train, _sub("train")]
    | Annotated[Sample, _sub("sample")]
    | Annotated[Convert, _sub("convert")]
    | Annotated[Export, _sub("export")]
    | Annotated[Report, _sub("report")]
    | Annotated[Serve, _sub("serve")]
)


def main() -> None:
    """The console script."""
    end_on_sigterm()
    guarded(_run_command)


def _run_command() -> None:
    command: Any = parse_command(
        Command,
        prog="srdd",
        description="Train, search, compare and serve scale-wise image generators.",
    )
    check_settings()
    terminal = Terminal()
    try:
        with log_to(terminal):
            command.run(terminal)
    except UserError as error:
        raise as_option(error, command) from None
