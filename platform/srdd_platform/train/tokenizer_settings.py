"""What a tokenizer's training takes beside its preset and the options of every training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from srdd.errors import UserError
from srdd.presets import Preset
from srdd.train.config import TokenizerLossConfig
from srdd.train.var.adversarial import patch_layers
from srdd.train.var.perceptual import Lpips, load_lpips
from srdd.validation import to_dict
from srdd_platform.core.files import sha256_file
from srdd_platform.evaluation.extractors import load_extractor
from srdd_platform.train.options import Options


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


def tokenizer_settings(preset: Preset, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a tokenizer's job, and the files that its worker reads.

    Raises:
        UserError: weights of LPIPS or of the extractor are missing or are none, or the images are
            too small for a loss.
    """
    more = options if isinstance(options, TokenizerOptions) else TokenizerOptions()
    loss = more.apply_loss(preset.tokenizer_loss)
    settings: dict[str, Any] = {
        "model": to_dict(preset.tokenizer),
        "loss": to_dict(loss),
        "optim": to_dict(options.apply(preset.tokenizer_optim)),
    }
    files: dict[str, Any] = {}
    resolution = preset.tokenizer.resolution
    if loss.gan:
        patch_layers(loss, resolution)
    if loss.lpips:
        if not more.lpips_files:
            raise UserError(f"the loss has LPIPS with weight {loss.lpips}: give --lpips FILE")
        load_lpips(more.lpips_files).check_size(resolution)
        settings["lpips"] = [sha256_file(path) for path in more.lpips_files]
        files["lpips"] = tuple(str(path.resolve()) for path in more.lpips_files)
    if more.weights is not None:
        load_extractor(more.extractor, more.weights)
        files["extractor"] = (more.extractor, str(more.weights.resolve()))
    return settings, files


def checked_lpips(paths: Sequence[str], settings: dict[str, Any]) -> Lpips | None:
    """LPIPS where a job has its files.

    Raises:
        UserError: they are not those that the run was started with.
    """
    for path, expected in zip(paths, settings.get("lpips", []), strict=False):
        if sha256_file(Path(path)) != expected:
            raise UserError(f"{path} has changed since the run was started")
    return load_lpips([Path(path) for path in paths]) if paths else None
