"""Configurations: frozen, typed, and refusing what is wrong by the field's name."""

import math
from dataclasses import asdict, dataclass, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from srdd.errors import UserError
from srdd.masks import MASKS, Mask
from srdd.scales import ScaleSchedule, check_patch_nums

C = TypeVar("C")


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise a :class:`UserError` that names the field and what it may be."""
    if not condition:
        raise UserError(f"{field} must be {allowed}, got {value!r}")


def _is_finite(value: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


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

    def __post_init__(self) -> None:
        check_patch_nums(self.patch_nums)
        factor = 2 ** (len(self.ch_mult) - 1)
        _require(self.resolution >= 1, "resolution", self.resolution, "positive")
        if self.resolution % factor or self.resolution // factor != self.patch_nums[-1]:
            raise UserError(
                f"resolution {self.resolution} does not fit: a schedule that ends at "
                f"{self.patch_nums[-1]} and {len(self.ch_mult)} levels (a factor of {factor}) "
                f"need resolution {self.patch_nums[-1] * factor}"
            )
        _require(self.vocab_size >= 2, "vocab_size", self.vocab_size, "at least 2")
        _require(1 <= self.num_phi <= 64, "num_phi", self.num_phi, "from 1 to 64")
        for name in ("z_channels", "ch", "num_res_blocks"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "positive")

    @property
    def schedule(self) -> ScaleSchedule:
        """The schedule of ``patch_nums``."""
        return ScaleSchedule(self.patch_nums)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """VAR's transformer. VAR and SDD differ by ``mask`` alone."""

    patch_nums: tuple[int, ...]
    mask: Mask = "markov"
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

    def __post_init__(self) -> None:
        check_patch_nums(self.patch_nums)
        _require(self.mask in MASKS, "mask", self.mask, f"one of {', '.join(MASKS)}")
        for name in ("num_classes", "depth", "width", "num_heads", "z_channels", "num_phi"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "positive")
        _require(self.width % self.num_heads == 0, "width", self.width, "a multiple of num_heads")
        _require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "in [0, 1)")

    @property
    def schedule(self) -> ScaleSchedule:
        """The schedule of ``patch_nums``."""
        return ScaleSchedule(self.patch_nums)


CfgRamp = Literal["linear", "constant", "window"]
Resample = Literal["masked", "simple"]
Feedback = Literal["updated", "kept", "none"]
CFG_RAMPS: tuple[CfgRamp, ...] = get_args(CfgRamp)
RESAMPLES: tuple[Resample, ...] = get_args(Resample)
FEEDBACKS: tuple[Feedback, ...] = get_args(Feedback)


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
        if self.patch_nums is not None:
            check_patch_nums(self.patch_nums)
        _require(_is_finite(self.cfg) and self.cfg >= 0, "cfg", self.cfg, "finite and >= 0")
        low, high = self.cfg_window
        _require(0 <= low <= high <= 1, "cfg_window", self.cfg_window, "0 <= low <= high <= 1")
        _require(self.top_k >= 0, "top_k", self.top_k, ">= 0 (0 keeps every code)")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(0 <= self.epsilon < 1, "epsilon", self.epsilon, "in [0, 1)")
        _require(self.refine_steps >= 0, "refine_steps", self.refine_steps, ">= 0")
        _require(
            0 <= self.resample_threshold <= 1,
            "resample_threshold",
            self.resample_threshold,
            "a probability in [0, 1]",
        )
        for name, allowed in (
            ("cfg_ramp", CFG_RAMPS),
            ("resample", RESAMPLES),
            ("feedback", FEEDBACKS),
        ):
            value = getattr(self, name)
            _require(value in allowed, name, value, f"one of {', '.join(allowed)}")

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


def _accepts(annotation: Any, value: Any) -> bool:
    """Whether ``value`` has the annotated type; an int passes for a float, a bool for neither."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return any(_accepts(option, value) for option in get_args(annotation))
    if origin is Literal:
        return value in get_args(annotation)
    if origin is tuple:
        inner = get_args(annotation)[0]
        return isinstance(value, tuple) and all(_accepts(inner, item) for item in value)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return annotation is Any or isinstance(value, annotation)


def from_dict(kind: type[C], values: dict[str, Any], where: str = "") -> C:
    """Build a configuration from JSON values: lists become tuples, types are checked.

    Raises:
        UserError: a field is unknown, missing, of the wrong type or out of range, by name.
    """
    prefix = f"{where}: " if where else ""
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"{prefix}unknown setting {unknown[0]!r}; known: {', '.join(known)}")
    typed = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name, value in typed.items():
        if not _accepts(hints[name], value):
            expected = getattr(hints[name], "__name__", None)
            expected = expected if isinstance(hints[name], type) else str(hints[name])
            raise UserError(f"{prefix}{name} must be of type {expected}, got {value!r}")
    try:
        return kind(**typed)
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None
    except TypeError as error:
        raise UserError(f"{prefix}{error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON values: tuples become lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
