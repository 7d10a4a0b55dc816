"""How a model is trained: what every training shares, and what is particular to each."""

from dataclasses import dataclass, field
from typing import Literal

from srdd.validation import SPARSE, require, settle

LrSchedule = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "bfloat16"]
ScaleWeights = Literal["uniform", "lognorm"]
RestartVote = Literal["scale", "vector"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW, its schedules and its arithmetic. Batch size is global, whatever the workers."""

    steps: int  # optimizer updates
    batch_size: int = 64
    lr: float = 1e-3  # at the end of warm-up
    lr_batch: int = 0  # the batch size lr is meant for: it grows in proportion; 0: lr as given
    lr_schedule: LrSchedule = "cosine"  # after warm-up
    final_lr: float = 0.05  # share of lr left at the last step
    warmup: float = 0.05  # share of the steps, linear
    warmup_start: float = 0.0  # share of lr at the first update; 0: it rises as from 0 before it
    hold: float = 0.0  # share of the steps after warm-up at full lr; VAR's lin0 has 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05  # of weights with two or more dimensions
    final_weight_decay: float | None = None  # reached along a cosine; None: it stays
    clip: float = 1.0  # of the gradient's norm; 0 leaves it
    ema: float = 0.0  # decay of the weights' moving average, which the model takes; 0: none
    accumulate: int = 1  # parts of a worker's batch, one after the other: less memory
    precision: Precision = "float32"  # of products; weights and sums stay in float32
    compile: bool = False  # torch.compile of the transformer's blocks
    recompute: bool = False  # the transformer's blocks again in the backward pass: less memory
    nonfinite_steps: int = 1  # updates in a row with a loss that is not finite before it stops
    seed: int = 0

    def __post_init__(self) -> None:
        settle(self)
        for name in ("steps", "batch_size", "accumulate", "nonfinite_steps"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "positive")
        require(self.lr > 0, "lr", self.lr, "positive")
        for name in ("final_lr", "warmup", "warmup_start"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        for name in ("hold", "ema"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        require(0 <= min(self.betas) <= max(self.betas) < 1, "betas", self.betas, "in [0, 1)")
        require(self.clip >= 0, "clip", self.clip, ">= 0 (0 leaves the gradient)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, ">= 0")
        final = self.final_weight_decay
        require(final is None or final >= 0, "final_weight_decay", final, ">= 0")
        for name in ("lr_batch", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")

    @property
    def peak_lr(self) -> float:
        """The learning rate at the end of warm-up, at this batch size."""
        return self.lr * self.batch_size / self.lr_batch if self.lr_batch else self.lr


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerLossConfig:
    """The tokenizer's loss and the health of its codebook."""

    l1: float = 0.2
    l2: float = 1.0
    vq: float = 1.0  # mean over scales of VAR's VQ loss
    beta: float = 0.25  # share of the VQ loss that trains the encoder
    restart_every: int = 50  # steps between restarts of dead codes; 0 never
    restart_below: float = 0.5  # a code is dead below this share of an even use (see dead_codes)
    restart_vote: RestartVote = "scale"  # who says which are dead and where they go: each alike
    restart_until: float = 0.8  # share of the steps after which codes are left alone
    entropy: float = 0.0  # weight of the entropy of soft assignments, see srdd.train.var.codebook
    entropy_temperature: float = 0.1  # of distances relative to their mean over the codes
    scale_drop: float = 0.0  # share of images quantised without some of the scales but the last
    lpips: float = 0.0  # needs weights; vaex has 1.0
    gan: float = 0.0  # of the adversarial loss, times the ratio of gradients; vaex has 0.4
    gan_start: float = 0.2  # share of the steps before which there is no discriminator
    gan_warmup: float = 0.02  # share of the steps in which the weight grows from 0
    gan_lr: float = 3e-4  # the discriminator's; it falls as the tokenizer's does
    gan_width: int = 64  # the discriminator's first level; each further one doubles it, to 8 times
    gan_layers: int = 0  # levels that halve the side; 0: as many as the images bear, at most 3
    gan_augment: float = 1.0  # DiffAug: the probability of each of its changes

    def __post_init__(self) -> None:
        settle(self)
        for name in ("l1", "l2", "vq", "beta", "restart_every", "restart_below", "gan_layers"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        for name in ("entropy", "lpips", "gan"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0 (0: without it)")
        for name in ("restart_until", "gan_start", "gan_warmup", "scale_drop", "gan_augment"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        for name in ("entropy_temperature", "gan_lr", "gan_width"):
            require(getattr(self, name) > 0, name, getattr(self, name), "positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerLossConfig:
    """The transformer's loss: cross-entropy, by default the mean over all codes."""

    label_drop: float = 0.1  # share of images trained on the null class, for guidance
    scale_weights: ScaleWeights = "uniform"  # each code alike, or HMAR's bell over the scales
    refine_share: float = 0.0  # share of images that see some of a scale's own codes (refinement)
    teacher_kl: float = field(default=0.0, metadata=SPARSE)  # weight of KL(teacher || student)

    def __post_init__(self) -> None:
        settle(self)
        require(self.teacher_kl >= 0, "teacher_kl", self.teacher_kl, ">= 0 (0: no teacher)")
        require(0 <= self.label_drop < 1, "label_drop", self.label_drop, "in [0, 1)")
        require(0 <= self.refine_share <= 1, "refine_share", self.refine_share, "in [0, 1]")
