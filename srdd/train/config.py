"""How a model is trained: what every training shares, and what is particular to each."""

from dataclasses import dataclass
from typing import Literal

from srdd.fields import require, settle

LrSchedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedule. Batch size is global, whatever the number of workers."""

    steps: int  # optimizer updates
    batch_size: int = 64
    lr: float = 1e-3  # at the end of warm-up
    lr_schedule: LrSchedule = "cosine"  # after warm-up
    final_lr: float = 0.05  # share of lr left at the last step
    warmup: float = 0.05  # share of the steps, linear from 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05  # of weights with two or more dimensions
    clip: float = 1.0  # of the gradient's norm; 0 leaves it
    seed: int = 0

    def __post_init__(self) -> None:
        settle(self)
        for name in ("steps", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "positive")
        require(self.lr > 0, "lr", self.lr, "positive")
        for name in ("final_lr", "warmup"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        require(0 <= min(self.betas) <= max(self.betas) < 1, "betas", self.betas, "in [0, 1)")
        require(self.clip >= 0, "clip", self.clip, ">= 0 (0 leaves the gradient)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, ">= 0")
        require(self.seed >= 0, "seed", self.seed, ">= 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerLossConfig:
    """The tokenizer's loss and the health of its codebook."""

    l1: float = 0.2
    l2: float = 1.0
    vq: float = 1.0  # mean over scales of VAR's VQ loss
    beta: float = 0.25  # share of the VQ loss that trains the encoder
    restart_every: int = 50  # steps between restarts of dead codes; 0 never
    restart_below: float = 0.5  # a code is dead below this share of an even use; 0: unused only
    restart_until: float = 0.8  # share of the steps after which codes are left alone

    def __post_init__(self) -> None:
        settle(self)
        for name in ("l1", "l2", "vq", "beta", "restart_every", "restart_below"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(0 <= self.restart_until <= 1, "restart_until", self.restart_until, "in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerLossConfig:
    """The transformer's loss: cross-entropy, the mean over all codes."""

    label_drop: float = 0.1  # share of images trained on the null class, for guidance

    def __post_init__(self) -> None:
        settle(self)
        require(0 <= self.label_drop < 1, "label_drop", self.label_drop, "in [0, 1)")
