"""Official weight files to a pipeline directory, and back: each whole or not at all."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from srdd.checkpoint import save_tensors
from srdd.errors import UserError
from srdd.load import load_var
from srdd.var.masks import Mask
from srdd.var.official.convert import (
    Source,
    build_pipeline,
    has_tokenizer,
    tokenizer_source,
    transformer_source,
)
from srdd.var.official.describe import (
    describe_conversion,
    mask_warning,
    official_arguments,
)
from srdd.var.official.names import to_var, to_vqvae
from srdd.var.pipeline import save_pipeline
from srdd.weight_files import read_weights
from srdd_platform.core.files import atomic_path

_SUFFIXES = (".pth", ".pt", ".safetensors")

logger = logging.getLogger(__name__)


def convert(
    transformer: Path,
    out: Path,
    *,
    vae: Path | None = None,
    patch_nums: Sequence[int] | None = None,
    mask: Mask | None = None,
    num_heads: int | None = None,
    class_names: Sequence[str] | None = None,
    show_keys: bool = False,
) -> None:
    """Write a pipeline directory of official weights, and log what became of them.

    Args:
        transformer: file of the transformer, or of both networks.
        out: pipeline directory, new or empty.
        vae: file of the tokenizer; None where the transformer's holds it.
        patch_nums: the scales; None for published lengths.
        mask: None for the layout's own.
        num_heads: where no tensor says it; None for the depth.
        class_names: None for the indices.
        show_keys: log what became of every key.

    Raises:
        UserError: a file is no such checkpoint, or does not fit.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists: give another --out")
    tokenizer, source = _read_sources(vae, transformer)
    pipeline = build_pipeline(
        tokenizer, source, patch_nums=patch_nums, mask=mask, num_heads=num_heads,
        class_names=class_names,
    )  # fmt: skip
    with atomic_path(out) as temporary:
        save_pipeline(pipeline, temporary)
    lines = describe_conversion(pipeline, tokenizer, source, given=mask, show_keys=show_keys)
    logger.info("%s", "\n".join(lines))
    if warning := mask_warning(pipeline, source):
        logger.warning("%s", warning)


def _read_sources(vae: Path | None, transformer: Path) -> tuple[Source, Source]:
    loaded = read_weights(
        transformer, "--transformer takes VAR's, MVAR's or HMAR's, such as var_d16.pth"
    )
    other, where = loaded, transformer
    if vae is not None:
        other, where = read_weights(vae, "--vae takes VAR's, such as vae_ch160v4096z32.pth"), vae
    elif not has_tokenizer(loaded, str(transformer)):
        raise UserError(f"{transformer} has no tokenizer: give --vae")
    return tokenizer_source(other, str(where)), transformer_source(loaded, str(transformer))


def export(model: Path, *, vae: Path, transformer: Path) -> None:
    """Write a pipeline as VAR's two files, and log how VAR's code loads them.

    Args:
        model: pipeline or run directory.
        vae: the tokenizer's file, new; its suffix decides the format.
        transformer: the transformer's, likewise.

    Raises:
        UserError: the model is no pipeline, or an output's name will not do.
    """
    targets = (vae, transformer)
    for path in targets:
        if path.suffix not in _SUFFIXES:
            raise UserError(f"{path} must end in one of {', '.join(_SUFFIXES)}")
        if path.exists():
            raise UserError(f"{path} exists: give another name")
    if vae.resolve() == transformer.resolve():
        raise UserError(f"{vae} cannot be both files: give two names")
    pipeline = load_var(model)
    states = (to_vqvae(pipeline.tokenizer), to_var(pipeline.transformer))
    with atomic_path(vae) as first, atomic_path(transformer) as second:
        for temporary, target, state in zip((first, second), targets, states, strict=True):
            _save(temporary, target.suffix, state)
    for path, state in zip(targets, states, strict=True):
        logger.info("%s: %d tensors", path, len(state))
    for line in official_arguments(pipeline):
        logger.info("%s", line)


def _save(path: Path, suffix: str, state: dict[str, Tensor]) -> None:
    own = {name: tensor.contiguous() for name, tensor in state.items()}
    if suffix == ".safetensors":
        save_tensors(path, own)
        return
    with path.open("wb") as file:  # given a path, torch would write its name into the archive
        torch.save(own, file)
