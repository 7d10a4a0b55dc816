"""Official weights to a pipeline: VAR's files, its training checkpoints, MVAR's and HMAR's.

The three share one computation. What tells them apart is the mask, which never comes from a file.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.foreign import Found, find_state, is_plain, listed, main_state
from srdd.networks import name_network
from srdd.var.config import SamplerConfig
from srdd.var.masks import Mask
from srdd.var.official.infer_config import (
    check_fit,
    infer_tokenizer,
    infer_transformer,
    settle_patch_nums,
)
from srdd.var.official.names import Mapped, is_hmar, map_tokenizer, map_transformer
from srdd.var.pipeline import Pipeline
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

M = TypeVar("M", bound=nn.Module)
Layout = Literal["VAR", "MVAR", "HMAR"]
LAYOUT_MASK: dict[Layout, Mask] = {"VAR": "block_causal", "MVAR": "markov_local", "HMAR": "markov"}
_VAE_KEYS = ("vae_local", "vae_ema", "vae_wo_ddp")  # the last two are vaex's
_TRANSFORMER_KEYS: dict[str, Layout] = {
    "var_wo_ddp": "VAR",
    "mvar_wo_ddp": "MVAR",
    "transformer_wo_ddp": "HMAR",
}


@dataclass(frozen=True, slots=True)
class Source:
    """One model's weights as found in a file."""

    where: str  # what messages call it
    mapped: Mapped
    layout: Layout = "VAR"
    level_1L: Tensor | None = None  # VAR's buffer, each code's scale
    hides_first: bool = False  # whether the file's mask hides scale 1 from the last code
    place: str = ""  # where in the file, "trainer.var_wo_ddp"; "" for the whole of it


def tokenizer_source(loaded: Mapping[str, Any], where: str) -> Source:
    """Find and map the tokenizer in what :func:`srdd.weight_files.read_weights` returned.

    Raises:
        UserError: there is none, or an entry is no weight.
    """
    with _about(where):
        found = _find_tokenizer(loaded)
        if found is None or name_network(found.state) == "a VQGAN":
            raise UserError(_instead("tokenizer", loaded))
        return Source(where, map_tokenizer(found.state), place=found.place)


def _find_tokenizer(loaded: Mapping[str, Any]) -> Found | None:
    def fits(state: Mapping[str, Any]) -> bool:
        return any(name.startswith("quantize.") for name in state)

    return find_state(loaded, _VAE_KEYS, fits)


def has_tokenizer(loaded: Mapping[str, Any], where: str) -> bool:
    """Whether a training checkpoint holds its tokenizer as well.

    Raises:
        UserError: two of its tensors have one name.
    """
    with _about(where):
        found = _find_tokenizer(loaded)
    return found is not None and bool(found.place)


def transformer_source(loaded: Mapping[str, Any], where: str) -> Source:
    """Find and map the transformer in what :func:`srdd.weight_files.read_weights` returned.

    Raises:
        UserError: there is none, or an entry is no weight.
    """
    with _about(where):
        found = find_state(loaded, tuple(_TRANSFORMER_KEYS), lambda state: "pos_1LC" in state)
        if found is None or name_network(found.state) == "HMAR's mask prediction":
            raise UserError(_instead("transformer", loaded))
        state = found.state
        mask: Any = state.get("attn_bias_for_masking")
        level_1L: Any = state.get("lvl_1L")
        corner = mask[0, 0, -1, 0] if is_plain(mask) and mask.dim() == 4 and mask.numel() else 0.0
        return Source(
            where=where,
            mapped=map_transformer(state),
            layout="HMAR" if is_hmar(state) else _TRANSFORMER_KEYS.get(found.key, "VAR"),
            level_1L=level_1L if is_plain(level_1L) else None,
            hides_first=bool(corner < 0),
            place=found.place,
        )


def build_pipeline(
    tokenizer: Source,
    transformer: Source,
    *,
    patch_nums: Sequence[int] | None = None,
    mask: Mask | None = None,
    num_heads: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Pipeline:
    """A pipeline of official weights, in eval mode; its parameters are the sources' tensors.

    Args:
        tokenizer: see :func:`tokenizer_source`.
        transformer: see :func:`transformer_source`.
        patch_nums: the scales; may be left out for published lengths.
        mask: default: the layout's own, ``LAYOUT_MASK``.
        num_heads: where no tensor tells it; default: the depth.
        class_names: default: the indices.

    Raises:
        UserError: keys or shapes do not fit, with their names in the file.
    """
    with _about(transformer.where):
        sides = settle_patch_nums(transformer.mapped, patch_nums, transformer.level_1L)
    with _about(tokenizer.where):
        vae_config = infer_tokenizer(tokenizer.mapped, sides)
        vae = _load(Tokenizer, vae_config, tokenizer.mapped, {})
    frozen = {
        name: tensor.clone()  # the transformer's own copy
        for name, tensor in tokenizer.mapped.tensors.items()
        if name.startswith("quantizer.")
    }
    with _about(transformer.where):
        config = infer_transformer(
            transformer.mapped,
            sides,
            mask=mask or LAYOUT_MASK[transformer.layout],
            num_phi=vae_config.num_phi,
            num_heads=num_heads,
        )
        for name, own, its in (
            ("codes", config.vocab_size, vae_config.vocab_size),
            ("channels", config.z_channels, vae_config.z_channels),
        ):
            if own != its:
                raise UserError(f"the transformer is for {own} {name}, {tokenizer.where} has {its}")
        model = _load(ScaleTransformer, config, transformer.mapped, frozen)
    names = [str(i) for i in range(config.num_classes)] if class_names is None else class_names
    return Pipeline(vae, model, official_sampler(config.vocab_size), tuple(names))


def official_sampler(vocab_size: int) -> SamplerConfig:
    """The settings of VAR's published FID (its README); MVAR's and HMAR's differ little."""
    return SamplerConfig(cfg=1.5, top_k=900 if vocab_size > 900 else 0, top_p=0.96)


def _load(build: type[M], config: Any, mapped: Mapped, frozen: dict[str, Tensor]) -> M:
    """A model whose parameters are the given tensors, uncopied: a 2-billion one fits once."""
    with torch.device("meta"):
        model = build(config)
    check_fit(model, mapped, frozen)
    model.load_state_dict({**mapped.tensors, **frozen}, assign=True)
    return model.eval().requires_grad_(False)


_EXAMPLES = {"tokenizer": "vae_ch160v4096z32.pth", "transformer": "var_d16.pth"}
_OF = {"tokenizer": "VAR", "transformer": "VAR, MVAR or HMAR"}


def _instead(wanted: str, loaded: Mapping[str, Any]) -> str:
    """What a file holds that is not the model wanted, and what would be right."""
    state = main_state(loaded)
    network = name_network(state)
    other = {"tokenizer": "transformer", "transformer": "tokenizer"}[wanted]
    if network == f"VAR's {other}":
        return f"this is the {other}: are the two files swapped?"
    if network == "HMAR's mask prediction":
        return (
            "this is HMAR's mask prediction, which cannot draw scale by scale: give HMAR's "
            "next-scale checkpoint, or its released file, which holds both"
        )
    if network is None:
        return f"there is no {_OF[wanted]} {wanted} in it; its keys: {listed(state) or 'none'}"
    return f"this is {network}: a {wanted} of {_OF[wanted]} is wanted, such as {_EXAMPLES[wanted]}"


@contextmanager
def _about(where: str) -> Iterator[None]:
    """Let messages name the file; one about a setting still begins with the setting."""
    try:
        yield
    except UserError as error:
        if error.field:
            raise UserError(f"{error} ({where})", field=error.field) from None
        raise UserError(f"{where}: {error}") from None
