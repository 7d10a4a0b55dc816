"""The parameter names of VAR, MVAR and HMAR, mapped to ours and back.

Left out on the way in: buffers (attention mask, level indices, zero key bias, usage counts) and
HMAR's mask prediction. A mask that came back from a causal checkpoint would undo the Markov
property. Back in VAR's names the buffers return, for its strict loading.

MVAR has VAR's names. HMAR (Kumbong et al. 2025) splits the blocks and the bias of the input:
``base_blocks``, then ``ns_blocks``; ``ns_head`` predicts the next scale.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.foreign import is_plain, owned
from srdd.var.config import TransformerConfig
from srdd.var.mask_tensors import build_mask
from srdd.var.phi import phi_of_scale
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

Rules = tuple[tuple[str, str], ...]

_DROP = re.compile(
    r"(^|\.)(attn_bias_for_masking|lvl_1L|zero_k_bias|ema_vocab_hit_SV"
    r"|vocab_usage|vocab_usage_record_times)$"  # vaex's names of the last
)
_DROP_HMAR = re.compile(r"^mask_(blocks|head|head_nm|embed)\.")
_TOKENIZER: Rules = (
    (r"^quantize\.embedding\.", "quantizer.codebook."),
    (r"^quantize\.quant_resi\.qresi_ls\.", "quantizer.phi.convs."),
    (r"^quantize\.quant_resi\.qresi\.", "quantizer.phi.convs.0."),  # one phi, fully shared
    (r"^quantize\.quant_resi\.(?=weight|bias)", "quantizer.phi.convs.0."),  # the same in vaex
    (r"^quantize\.quant_resi\.(\d+)\.", r"quantizer.phi.convs.\1."),  # one phi a scale
)
_HMAR: Rules = (  # to VAR's names
    (r"^base_blocks\.", "blocks."),
    (r"^ns_head", "head"),
    (r"^word_embed_bias$", "word_embed.bias"),
)
_TRANSFORMER: Rules = (
    (r"^pos_1LC$", "pos_embed"),
    (r"^lvl_embed\.", "level_embed."),
    (r"^head_nm\.ada_lin\.1\.", "head_ada."),
    (r"^shared_ada_lin\.1\.", "shared_ada_lin."),
    (r"\.ada_lin\.1\.", ".ada_lin."),
    (r"\.attn\.mat_qkv\.", ".attn.qkv."),
    (r"\.attn\.scale_mul_1H11$", ".attn.log_scale"),
)
_TRANSFORMER_BACK: Rules = (
    (r"^pos_embed$", "pos_1LC"),
    (r"^level_embed\.", "lvl_embed."),
    (r"^head_ada\.", "head_nm.ada_lin.1."),
    (r"^shared_ada_lin\.", "shared_ada_lin.1."),
    (r"^(blocks\.\d+)\.ada_lin\.", r"\1.ada_lin.1."),
    (r"\.attn\.qkv\.", ".attn.mat_qkv."),
    (r"\.attn\.log_scale$", ".attn.scale_mul_1H11"),
)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A foreign state dict under our names."""

    tensors: dict[str, Tensor]  # float32
    origin: dict[str, str]  # our name -> the file's
    dropped: tuple[str, ...]  # the file's names that were left out


def _apply(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _map(state: Mapping[str, Any], names: Mapping[str, str], dropped: list[str]) -> Mapped:
    """Rename by ``names`` (the file's -> ours), and check what is kept."""
    origin: dict[str, str] = {}
    for name, ours in names.items():
        if ours in origin:
            raise UserError(f"{origin[ours]} and {name} are the same parameter")
        origin[ours] = name
    for name in dropped:  # our keys have no bias at all
        if name.endswith("zero_k_bias") and is_plain(state[name]) and state[name].any():
            raise UserError(f"{name} is not zero: no model here has a bias of the keys")
    tensors = owned({name: state[name] for name in names})
    return Mapped({names[name]: tensors[name] for name in names}, origin, tuple(dropped))


def map_tokenizer(state: Mapping[str, Any]) -> Mapped:
    """A VAR tokenizer's state dict under our names (:class:`srdd.var.tokenizer.Tokenizer`).

    Raises:
        UserError: an entry is no floating-point tensor, or two are the same parameter.
    """
    dropped = [name for name in state if _DROP.search(name)]
    names = {name: _apply(_TOKENIZER, name) for name in state if name not in dropped}
    return _map(state, names, dropped)


def is_hmar(state: Mapping[str, Any]) -> bool:
    """Whether a transformer has HMAR's split blocks."""
    return any(name.startswith(("base_blocks.", "ns_blocks.")) for name in state)


def map_transformer(state: Mapping[str, Any]) -> Mapped:
    """A VAR, MVAR or HMAR transformer's state dict under our names, without a quantizer.

    HMAR's next-scale path becomes a transformer of all its blocks; its mask prediction is dropped.

    Raises:
        UserError: as :func:`map_tokenizer`.
    """
    hmar = is_hmar(state)
    dropped = [name for name in state if _DROP.search(name) or (hmar and _DROP_HMAR.search(name))]
    names = {name: name for name in state if name not in dropped}
    if hmar:
        base = len({name.split(".")[1] for name in names if name.startswith("base_blocks.")})
        names = {name: _from_hmar(name, base) for name in names}
    renamed = {name: _apply(_TRANSFORMER, var) for name, var in names.items()}
    mapped = _map(state, renamed, dropped)
    for name, tensor in mapped.tensors.items():
        if name.endswith(".log_scale") and tensor.dim() == 4 and len(tensor) == 1:
            mapped.tensors[name] = tensor[0]  # [1, H, 1, 1] -> [H, 1, 1]
    return mapped


def _from_hmar(name: str, base: int) -> str:
    """HMAR's name of a parameter to VAR's; ``base`` blocks come before the ``ns_blocks``."""
    name = re.sub(r"^ns_blocks\.(\d+)\.", lambda m: f"blocks.{base + int(m[1])}.", name)
    return _apply(_HMAR, name)


def from_vqvae(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAR tokenizer's state dict under our names (:class:`srdd.var.tokenizer.Tokenizer`)."""
    return map_tokenizer(tensors).tensors


def from_var(tensors: dict[str, Tensor], tokenizer: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAR, MVAR or HMAR transformer under our names, with the tokenizer's frozen quantizer.

    Args:
        tensors: the transformer's state dict.
        tokenizer: what :func:`from_vqvae` returned.
    """
    frozen = {name: t for name, t in tokenizer.items() if name.startswith("quantizer.")}
    return {**map_transformer(tensors).tensors, **frozen}


def share_quant_resi(num_phi: int, num_scales: int) -> int:
    """VAR's setting for a number of phis: 1 for one, 0 for one a scale, else their number.

    Four of four scales are 4, its default, which gives each scale the same phi as 0 would.
    """
    return 0 if num_phi == num_scales and num_phi not in (1, 4) else num_phi


def vqvae_name(name: str, share: int) -> str:
    """Our name of a tokenizer's parameter to VAR's, for a :func:`share_quant_resi`."""
    phi = {0: r"\1.", 1: "qresi."}.get(share, r"qresi_ls.\1.")
    return _apply(
        (
            (r"^quantizer\.codebook\.", "quantize.embedding."),
            (r"^quantizer\.phi\.convs\.(\d+)\.", f"quantize.quant_resi.{phi}"),
        ),
        name,
    )


def var_name(name: str) -> str:
    """Our name of a transformer's parameter to VAR's."""
    return _apply(_TRANSFORMER_BACK, name)


def to_vqvae(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """A tokenizer's state dict in VAR's names, with its buffer (usage counts, zero).

    Raises:
        UserError: it was pruned, and VAR's code would give a scale another phi than its own.
    """
    config = tokenizer.config
    num_scales = len(config.patch_nums)
    theirs, own_phi = phi_of_scale(config.patch_nums, config.num_phi), tokenizer.quantizer.phi
    moved = [str(side) for side in config.patch_nums if theirs[side] != own_phi.conv_of[side]]
    if moved:
        raise UserError(
            f"VAR's format cannot hold this model, pruned from scales "
            f"{','.join(map(str, config.parent))}: VAR would give another phi to scale "
            f"{', '.join(moved)}"
        )
    share = share_quant_resi(config.num_phi, num_scales)
    own = tokenizer.state_dict()
    state = {vqvae_name(name, share): tensor for name, tensor in own.items()}
    state["quantize.ema_vocab_hit_SV"] = torch.zeros(num_scales, config.vocab_size)
    return state


def to_var(transformer: ScaleTransformer) -> dict[str, Tensor]:
    """A transformer's state dict in VAR's names and shapes, with its buffers.

    ``attn_bias_for_masking`` holds the model's own mask: VAR's training forward adds it, while
    VAR's sampling loop attends to every earlier scale whatever it says.
    """
    state = {
        var_name(name): tensor[None] if name.endswith(".log_scale") else tensor
        for name, tensor in transformer.state_dict().items()
        if not name.startswith("quantizer.")
    }
    return {**state, **_buffers(transformer.config)}


def _buffers(config: TransformerConfig) -> dict[str, Tensor]:
    schedule = config.schedule
    sizes = torch.tensor([side * side for side in schedule.patch_nums])
    seen_LL = build_mask(config.mask, schedule)
    buffers = {
        f"blocks.{i}.attn.zero_k_bias": torch.zeros(config.width) for i in range(config.depth)
    }
    buffers["lvl_1L"] = torch.arange(len(sizes)).repeat_interleave(sizes)[None]
    hidden = torch.tensor(float("-inf"))
    buffers["attn_bias_for_masking"] = torch.where(seen_LL, torch.zeros(()), hidden)[None, None]
    return buffers
