"""Configurations: frozen, typed, and refusing what is wrong by the field's name."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from srdd.errors import UserError
from srdd.validation import SPARSE, require, settle
from srdd.var.masks import DEFAULT_MASK, Mask
from srdd.var.scales import ScaleSchedule, check_patch_nums, settle_parent


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """VAR's multi-scale VQ-VAE. The latent's side is ``resolution / 2**(len(ch_mult) - 1)``."""

    resolution: int  # pixels a side
    patch_nums: tuple[int, ...]  # the scales; the last is the latent's side
    vocab_size: int = 4096  # V
    z_channels: int = 32  # C
    ch: int = 160  # width of the first level
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)  # a level each, halving the side between them
    num_res_blocks: int = 2  # of the encoder; the decoder has one more
    num_phi: int = 4  # residual convolutions shared by the scales
    parent: tuple[int, ...] = field(default=(), metadata=SPARSE)  # scales before pruning, if any

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "parent", settle_parent(self.patch_nums, self.parent))
        fine = len(self.ch_mult) >= 1 and min(self.ch_mult) >= 1
        require(fine, "ch_mult", self.ch_mult, "positive, one a level")
        factor = 2 ** (len(self.ch_mult) - 1)
        require(self.resolution >= 1, "resolution", self.resolution, "positive")
        if self.resolution % factor or self.resolution // factor != self.patch_nums[-1]:
            raise UserError(
                f"resolution {self.resolution} does not fit: a schedule that ends at "
                f"{self.patch_nums[-1]} and {len(self.ch_mult)} levels (a factor of {factor}) "
                f"need resolution {self.patch_nums[-1] * factor}"
            )
        require(self.vocab_size >= 2, "vocab_size", self.vocab_size, "at least 2")
        require(1 <= self.num_phi <= 64, "num_phi", self.num_phi, "from 1 to 64")
        for name in ("z_channels", "ch", "num_res_blocks"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "positive")

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales, which know those they were pruned from."""
        return ScaleSchedule(self.patch_nums, self.parent)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """VAR's transformer. VAR and SDD differ by ``mask`` alone."""

    patch_nums: tuple[int, ...]
    mask: Mask = DEFAULT_MASK
    num_classes: int = 1000  # the null class is index num_classes
    depth: int = 16
    width: int = 1024
    num_heads: int = 16
    mlp_ratio: float = 4.0
    vocab_size: int = 4096
    z_channels: int = 32
    num_phi: int = 4
    shared_aln: bool = False  # one AdaLN for all blocks (VAR d36)
    attn_l2_norm: bool = True
    norm_eps: float = 1e-6
    drop_path: float = 0.0  # of the last block; linear from 0 at the first
    unconditional: bool = False  # one class, fed the null index: no guidance
    parent: tuple[int, ...] = field(default=(), metadata=SPARSE)  # scales before pruning, if any

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "parent", settle_parent(self.patch_nums, self.parent))
        for name in ("num_classes", "depth", "width", "num_heads", "z_channels"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "positive")
        for name in ("mlp_ratio", "norm_eps"):
            require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        require(self.vocab_size >= 2, "vocab_size", self.vocab_size, "at least 2")
        require(1 <= self.num_phi <= 64, "num_phi", self.num_phi, "from 1 to 64")
        if self.unconditional:
            require(self.num_classes == 1, "num_classes", self.num_classes, "1 if unconditional")
        require(self.width % self.num_heads == 0, "width", self.width, "a multiple of num_heads")
        require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "in [0, 1)")

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales, which know those they were pruned from."""
        return ScaleSchedule(self.patch_nums, self.parent)


CfgRamp = Literal["linear", "constant", "window"]
Resample = Literal["masked", "simple"]
Feedback = Literal["updated", "kept", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """How images are drawn from a trained model. Every field can be swept."""

    patch_nums: tuple[int, ...] | None = None  # scales visited; None: all that the model knows
    cfg: float = 0.0  # guidance weight t: (1 + t) cond - t uncond; DiT's cfg_scale is 1 + t
    cfg_ramp: CfgRamp = "linear"  # how the weight grows with the parent scale
    cfg_window: tuple[float, float] = (0.0, 0.75)  # ramp "window": relative scales, inclusive
    top_k: int = 0  # 0 keeps every code
    top_p: float = 1.0
    epsilon: float = 0.0  # codes less likely (guided, before top-k/top-p) are never drawn
    refine_steps: int = 0  # T, passes after a scale's first draw; 0 is plain VAR or SDD
    resample: Resample = "masked"  # which codes a pass redraws: MR the unlikely, SR all
    resample_threshold: float = 0.01  # MR's p, of guided probabilities before top-k/top-p
    feedback: Feedback = "updated"  # what a pass sees of the scale's own codes

    def __post_init__(self) -> None:
        settle(self)
        if self.patch_nums is not None:
            check_patch_nums(self.patch_nums)
        require(self.cfg >= 0, "cfg", self.cfg, ">= 0")
        low, high = self.cfg_window
        require(0 <= low <= high <= 1, "cfg_window", self.cfg_window, "0 <= low <= high <= 1")
        require(self.top_k >= 0, "top_k", self.top_k, ">= 0 (0 keeps every code)")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        require(0 <= self.epsilon < 1, "epsilon", self.epsilon, "in [0, 1)")
        require(self.refine_steps >= 0, "refine_steps", self.refine_steps, ">= 0")
        require(
            0 <= self.resample_threshold <= 1,
            "resample_threshold",
            self.resample_threshold,
            "a probability in [0, 1]",
        )

    def active(self) -> dict[str, Any]:
        """The settings that bear on the result; those left out are inactive.

        Two configurations with equal active settings draw the same images from the same seeds.
        """
        settings = asdict(self)
        if self.cfg == 0:
            del settings["cfg_ramp"]
        if self.cfg == 0 or self.cfg_ramp != "window":
            del settings["cfg_window"]
        masked = self.resample == "masked"
        refining = self.refine_steps > 0 and not (masked and self.resample_threshold == 0)
        if not refining:
            for name in ("resample", "resample_threshold", "feedback"):
                del settings[name]
            settings["refine_steps"] = 0
        elif not masked:
            del settings["resample_threshold"]
        return settings
