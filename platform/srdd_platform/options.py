"""What every training takes beside its preset: the command line's options, and the launcher's."""

from dataclasses import dataclass, replace
from typing import Literal

from srdd.errors import UserError
from srdd.train.config import OptimConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What every training takes beside its preset. None leaves the preset's value."""

    workers: int = 1  # Ray Train workers; the batch size is global, whatever their number
    max_steps: int | None = None  # optimizer updates, instead of the preset's
    batch_size: int | None = None  # instead of the preset's
    lr: float | None = None  # instead of the preset's
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # of a CPU worker
    checkpoint_every: int | None = None  # steps, instead of the preset's

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers must be positive, got {self.workers}")

    def apply(self, optim: OptimConfig) -> OptimConfig:
        """The preset's optimizer with what was given here."""
        return replace(
            optim,
            seed=self.seed,
            steps=optim.steps if self.max_steps is None else self.max_steps,
            batch_size=optim.batch_size if self.batch_size is None else self.batch_size,
            lr=optim.lr if self.lr is None else self.lr,
        )
