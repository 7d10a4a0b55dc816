"""The multi-scale tokenizer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd.train.config import TokenizerLossConfig
from srdd.train.var.adversarial import patch_layers
from srdd.train.var.perceptual import Lpips, load_lpips
from srdd.train.var.tokenizer_task import TokenizerTask
from srdd.var.config import TokenizerConfig
from srdd_platform.core.files import sha256_file
from srdd_platform.data.augment import pixel_settings
from srdd_platform.evaluation.extractors import load_extractor
from srdd_platform.train.kind import Inputs, Kind, Request, Settings
from srdd_platform.train.options import TokenizerOptions


def plan(request: Request) -> tuple[Settings, Inputs]:
    """The settings of a tokenizer, and the files of its losses and of rFID.

    Raises:
        UserError: weights of LPIPS or of the extractor are missing or are none, the images are
            too small for a loss, or random crops have nothing to crop.
    """
    options, model = request.options, request.preset.tokenizer
    assert isinstance(options, TokenizerOptions)
    loss = options.apply_loss(request.preset.tokenizer_loss)
    more: dict[str, Any] = {}
    lpips: tuple[str, ...] = ()
    extractor: tuple[str, ...] = ()
    if loss.gan:
        patch_layers(loss, model.resolution)
    if loss.lpips:
        if not options.lpips_files:
            raise UserError(f"the loss has LPIPS with weight {loss.lpips}: give --lpips FILE")
        load_lpips(options.lpips_files).check_size(model.resolution)
        more["lpips"] = [sha256_file(path) for path in options.lpips_files]
        lpips = tuple(str(path.resolve()) for path in options.lpips_files)
    if options.weights is not None:
        load_extractor(options.extractor, options.weights)
        extractor = (options.extractor, str(options.weights.resolve()))
    more |= pixel_settings(options, request.manifest)
    optim = options.apply(request.preset.tokenizer_optim)
    settings = Settings(model=model, loss=loss, optim=optim, more=more)
    return settings, Inputs(lpips=lpips, extractor=extractor)


def checked_lpips(paths: Sequence[str], settings: Settings) -> Lpips | None:
    """LPIPS where a training has its files.

    Raises:
        UserError: they are not those that the run was started with.
    """
    for path, expected in zip(paths, settings.more.get("lpips", []), strict=False):
        if sha256_file(Path(path)) != expected:
            raise UserError(f"{path} has changed since the run was started")
    return load_lpips([Path(path) for path in paths]) if paths else None


def build(settings: Settings, inputs: Inputs) -> TokenizerTask:
    """The task, freshly initialised."""
    lpips = checked_lpips(inputs.lpips, settings)
    return TokenizerTask(settings.model, settings.loss, settings.optim, lpips)


def blank(settings: Settings, inputs: Inputs) -> TokenizerTask:
    """The task without the weights of LPIPS."""
    lpips = Lpips() if inputs.lpips else None
    return TokenizerTask(settings.model, settings.loss, settings.optim, lpips)


def costliest(settings: Settings) -> Settings:
    """The discriminator trains from the first update on."""
    return replace(settings, loss=replace(settings.loss, gan_start=0.0))


TOKENIZER = Kind(
    name="tokenizer",
    model=TokenizerConfig,
    loss=TokenizerLossConfig,
    options=TokenizerOptions,
    plan=plan,
    build=build,
    blank=blank,
    costliest=costliest,
)
