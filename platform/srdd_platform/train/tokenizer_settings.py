"""The settings of a tokenizer's job, and the files that its worker reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd.presets import Preset
from srdd.train.var.adversarial import patch_layers
from srdd.train.var.perceptual import Lpips, load_lpips
from srdd.validation import to_dict
from srdd_platform.core.files import sha256_file
from srdd_platform.evaluation.extractors import load_extractor
from srdd_platform.train.options import Options, TokenizerOptions


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
