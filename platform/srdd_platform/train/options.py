"""What every training takes beside its preset: the command line's options, and the launcher's."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from srdd.errors import UserError
from srdd.train.config import (
    LrSchedule,
    OptimConfig,
    Precision,
    ScaleWeights,
    TokenizerLossConfig,
    TransformerLossConfig,
)
from srdd_platform.core.location import parse_location
from srdd_platform.data.options import DataOptions

Parallel = Literal["ddp", "fsdp"]
C = TypeVar("C", OptimConfig, TransformerLossConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(DataOptions):
    """What every training takes beside its preset. None leaves the preset's value."""

    workers: int | str = 1  # Ray Train workers, or A:B as there is room; the batch size is global
    parallel: Parallel = "ddp"  # each worker has the whole model, or (transformers) a shard of it
    max_failures: int = 3  # lost workers that brought no new checkpoint, before a run gives up
    wait_for_resources: float | None = None  # seconds; default 600 where the cluster can grow, or 0
    checkpoints: str | None = None  # where they lie instead of OUT/checkpoints: s3://bucket/folder
    keep_checkpoints: int = 2  # the newest ones
    max_steps: int | None = None  # optimizer updates, instead of the preset's
    extend_to: int = 0  # steps in all: goes on with a run, finished or not, at its last rate
    batch_size: int | None = None  # instead of the preset's; so are the next ones
    lr: float | None = None  # at the end of warm-up
    lr_batch: int | None = None  # the batch size lr is meant for, in proportion; 0: as given
    lr_schedule: LrSchedule | None = None  # after warm-up
    final_lr: float | None = None  # share of lr left at the last step
    warmup: float | None = None  # share of the steps
    warmup_start: float | None = None  # share of lr at the first step
    hold: float | None = None  # share of the steps after warm-up at full lr
    weight_decay: float | None = None  # of matrices and class embeddings
    final_weight_decay: float | None = None  # reached along a cosine
    clip: float | None = None  # of the gradient's norm; 0 leaves it
    ema: float | None = None  # decay of the weights' moving average; 0: none
    accumulate: int | None = None  # parts of a worker's batch, one after the other
    nonfinite_steps: int | None = None  # in a row, before the training stops
    seed: int = 0  # of the first weights and of every draw
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # of a CPU worker
    checkpoint_every: int | None = None  # steps, instead of the preset's
    validate_every: int = 0  # steps between held-out losses in the log; 0: at the end alone
    grid_every: int = 0  # steps between grids of samples or reconstructions; 0: at the end alone

    def __post_init__(self) -> None:
        self.check_data()
        _ = self.worker_range, self.settled_checkpoints
        at_least = {
            "extend_to": 0, "validate_every": 0, "grid_every": 0, "max_failures": 0,
            "wait_for_resources": 0, "keep_checkpoints": 1,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} must be >= {least}, got {value}")

    @property
    def settled_checkpoints(self) -> str:
        """Where checkpoints go, for any process; "" for the run directory.

        Raises:
            UserError: it is not a location.
        """
        given = self.checkpoints
        return "" if given is None else str(parse_location(given, "--checkpoints"))

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        found = re.fullmatch(r"(\d+)(?::(\d+))?", str(self.workers))
        low = int(found[1]) if found else 0
        high = int(found[2] or low) if found else 0
        if not 1 <= low <= high:
            raise UserError(f"--workers must be N or A:B with 1 <= A <= B, got {self.workers}")
        return low, high

    def apply(self, optim: OptimConfig) -> OptimConfig:
        """The preset's optimizer with what was given here."""
        steps = optim.steps if self.max_steps is None else self.max_steps
        return replace(_given(self, optim), steps=steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerOptions(Options):
    """What a transformer's training takes beside that."""

    depth: int | None = None  # blocks, by VAR's rule: width 64 d, d heads, drop path 0.1 d / 24
    unconditional: bool = False  # leave the classes aside: one class, no guidance
    views: int = 1  # codes of each image, of random crops and flips; extracted where missing
    codes: Path | None = None  # folder for codes; default beside the tokenizer, or in OUT
    init_from: Path | None = None  # pipeline or run directory whose weights it begins with
    label_drop: float | None = None  # share of images trained on the null class, for guidance
    scale_weights: ScaleWeights | None = None  # each code alike, or HMAR's bell over the scales
    refine_share: float | None = None  # share of images that see some of a scale's own codes
    teacher_kl: float | None = None  # weight of KL(teacher || student); --init-from is the teacher
    precision: Precision | None = None  # of products
    compile: bool = False  # torch.compile of the blocks
    recompute: bool = False  # blocks again in the backward pass: less memory, more time

    def apply_loss(self, loss: TransformerLossConfig) -> TransformerLossConfig:
        """The preset's loss with what was given here."""
        return _given(self, loss)

    def apply(self, optim: OptimConfig) -> OptimConfig:
        """The preset's optimizer with what was given here."""
        compiled, again = optim.compile or self.compile, optim.recompute or self.recompute
        return replace(Options.apply(self, optim), compile=compiled, recompute=again)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerOptions(Options):
    """What a tokenizer's training takes beside. None leaves the preset's value."""

    lpips: Path | None = None  # weights of LPIPS: all in one file, or VGG16 alone
    lpips_heads: Path | None = None  # LPIPS's heads, where --lpips has VGG16 alone
    lpips_weight: float | None = None  # of the perceptual loss; 1 where --lpips is given
    gan_weight: float | None = None  # of the adversarial loss; VQGAN's and vaex's are 0.4 to 1
    gan_start: float | None = None  # share of the steps before the discriminator begins
    entropy_weight: float | None = None  # of the entropy of assignments
    scale_drop: float | None = None  # share of images quantised without some of the scales
    extractor: Literal["classifier", "inception"] = "classifier"  # whose features rFID compares
    weights: Path | None = None  # the extractor's; without them no rFID is measured

    def __post_init__(self) -> None:
        Options.__post_init__(self)  # a class with slots is made anew: super() would not find it
        for name in ("lpips_heads", "lpips_weight"):
            if getattr(self, name) is not None and self.lpips is None:
                raise UserError(f"--{name.replace('_', '-')} goes with --lpips")
        for name in ("lpips", "lpips_heads", "weights"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise UserError(f"--{name.replace('_', '-')} {path} does not exist")

    @property
    def lpips_files(self) -> list[Path]:
        """The files with LPIPS's weights."""
        return [path for path in (self.lpips, self.lpips_heads) if path is not None]

    def apply_loss(self, loss: TokenizerLossConfig) -> TokenizerLossConfig:
        """The preset's loss with what was given here."""
        lpips = (loss.lpips or 1.0) if self.lpips and self.lpips_weight is None else None
        given: dict[str, Any] = {
            "lpips": self.lpips_weight if lpips is None else lpips,
            "gan": self.gan_weight,
            "gan_start": self.gan_start,
            "entropy": self.entropy_weight,
            "scale_drop": self.scale_drop,
        }
        return replace(loss, **{name: v for name, v in given.items() if v is not None})


def _given(options: Any, config: C) -> C:
    """A configuration with the options of its fields' names that are not None."""
    names = {field.name for field in fields(options)} & {field.name for field in fields(config)}
    values = {name: getattr(options, name) for name in names}
    return replace(config, **{name: v for name, v in values.items() if v is not None})
