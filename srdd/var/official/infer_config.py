"""Configurations read off the shapes of official weights (under our names).

What no tensor tells is VAR's own: epsilon 1e-6, phi weighing half, Euclidean nearest code.
"""

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from srdd.errors import UserError
from srdd.foreign import check_tensors
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.masks import Mask
from srdd.var.official.names import Mapped, var_name, vqvae_name
from srdd.var.official.published import PATCH_NUMS
from srdd.var.scales import check_patch_nums


def infer_tokenizer(mapped: Mapped, patch_nums: tuple[int, ...]) -> TokenizerConfig:
    """A VAR tokenizer's configuration for a schedule: its weights serve any.

    Raises:
        UserError: a tensor that tells it is missing or odd.
    """
    vocab_size, z_channels = _shape(mapped, "quantizer.codebook.weight", 2)
    ch = _shape(mapped, "encoder.conv_in.weight", 4)[0]
    levels = _count(mapped, "encoder.down.")
    widths = [_shape(mapped, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    if not ch or any(width % ch for width in widths):
        raise UserError(f"levels of {widths} channels are no multiples of the first layer's {ch}")
    return TokenizerConfig(
        resolution=patch_nums[-1] * 2 ** (levels - 1),
        patch_nums=patch_nums,
        vocab_size=vocab_size,
        z_channels=z_channels,
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=_count(mapped, "encoder.down.0.block."),
        num_phi=_count(mapped, "quantizer.phi.convs."),
    )


def infer_transformer(
    mapped: Mapped,
    patch_nums: tuple[int, ...],
    *,
    mask: Mask,
    num_phi: int,
    num_heads: int | None = None,
) -> TransformerConfig:
    """A VAR, MVAR or HMAR transformer's configuration.

    Args:
        mapped: the weights, without a quantizer.
        patch_nums: its scales, see :func:`settle_patch_nums`.
        mask: never read from a file.
        num_phi: the tokenizer's.
        num_heads: where no tensor tells it (files without l2-normed attention); default: the
            depth, as VAR has it.

    Raises:
        UserError: a tensor that tells it is missing, or ``num_heads`` is needed or contradicted.
    """
    classes, width = _shape(mapped, "class_emb.weight", 2)
    depth = _count(mapped, "blocks.")
    hidden = _shape(mapped, "blocks.0.ffn.fc1.weight", 2)[0]
    l2_norm = "blocks.0.attn.log_scale" in mapped.tensors
    if l2_norm:
        heads = _shape(mapped, "blocks.0.attn.log_scale", 3)[0]
        if num_heads not in (None, heads):
            raise UserError(
                f"num_heads {num_heads}: scale_mul_1H11 is there for {heads} heads",
                field="num_heads",
            )
    else:
        heads = depth if num_heads is None else num_heads
        if num_heads is None and width % depth:
            raise UserError(
                f"no tensor tells the number of heads, and width {width} is no multiple of the "
                f"depth {depth}: give --num-heads"
            )
    return TransformerConfig(
        patch_nums=patch_nums,
        mask=mask,
        num_classes=classes - 1,
        depth=depth,
        width=width,
        num_heads=heads,
        mlp_ratio=hidden / width,
        vocab_size=_shape(mapped, "head.weight", 2)[0],
        z_channels=_shape(mapped, "word_embed.weight", 2)[1],
        num_phi=num_phi,
        shared_aln="shared_ada_lin.weight" in mapped.tensors,
        attn_l2_norm=l2_norm,
    )


def settle_patch_nums(
    mapped: Mapped, given: Sequence[int] | None, level_1L: Tensor | None
) -> tuple[int, ...]:
    """The schedule: the one given, or the published one of the transformer's length.

    Args:
        mapped: the transformer's weights.
        given: ``--patch-nums``.
        level_1L: VAR's buffer ``lvl_1L``, each code's scale: it must agree.

    Raises:
        UserError: none is given and the length is not a published one, or the schedule does not
            fit the lengths of the position and level embeddings.
    """
    length = _shape(mapped, "pos_embed", 3)[1]
    num_scales = _shape(mapped, "level_embed.weight", 2)[0]
    told = _told(level_1L, length)
    hint = f" (the file's lvl_1L says {_text(told)})" if told else ""
    patch_nums = tuple(given) if given is not None else PATCH_NUMS.get(length)
    if patch_nums is None:
        raise UserError(
            f"L = {length} codes in {num_scales} scales is no published schedule: give "
            f"--patch-nums{hint}"
        )
    check_patch_nums(patch_nums)
    total = sum(side * side for side in patch_nums)
    if total != length or len(patch_nums) != num_scales:
        raise UserError(
            f"patch_nums {_text(patch_nums)} make {total} codes in {len(patch_nums)} scales, the "
            f"transformer has L = {length} in {num_scales}{hint}",
            field="patch_nums",
        )
    if told and told != patch_nums:
        raise UserError(
            f"patch_nums {_text(patch_nums)}: the file's lvl_1L says {_text(told)}; give those",
            field="patch_nums",
        )
    return patch_nums


def check_fit(model: nn.Module, mapped: Mapped, given: Mapping[str, Tensor] | None = None) -> None:
    """Refuse weights that do not fit a model, naming the file's keys.

    Args:
        model: built from the inferred configuration, on the meta device.
        mapped: the weights.
        given: our names that come from elsewhere (the frozen quantizer).

    Raises:
        UserError: keys are missing or unknown, or a shape is wrong.
    """
    check_tensors(
        {
            mapped.origin.get(name) or _file_name(mapped, name): tensor
            for name, tensor in model.state_dict().items()
            if name not in (given or {})
        },
        {mapped.origin[name]: tensor for name, tensor in mapped.tensors.items()},
    )


def _told(level_1L: Tensor | None, length: int) -> tuple[int, ...] | None:
    """The sides that VAR's level indices tell; None if they make no sense."""
    if level_1L is None or level_1L.shape != (1, length):
        return None
    counts = level_1L.unique_consecutive(return_counts=True)[1].tolist()
    sides = [math.isqrt(count) for count in counts]
    fits = sum(side * side for side in sides) == length
    return tuple(sides) if fits else None


def _text(patch_nums: Sequence[int]) -> str:
    return ",".join(map(str, patch_nums))


def _file_name(mapped: Mapped, name: str) -> str:
    """A missing key as the file would spell it, going by its neighbours."""
    block = re.match(r"blocks\.\d+\.", name)
    if block is not None:
        for ours, theirs in mapped.origin.items():
            if ours.startswith(block[0]):
                found = re.match(r"\w+\.\d+\.", theirs)
                return (found[0] if found else block[0]) + var_name(name)[block.end() :]
    return vqvae_name(var_name(name), share=4)


def _shape(mapped: Mapped, name: str, dims: int) -> tuple[int, ...]:
    tensor = mapped.tensors.get(name)
    if tensor is None:
        raise UserError(f"there is no {_file_name(mapped, name)}")
    if tensor.dim() != dims or not tensor.numel():
        raise UserError(f"{mapped.origin[name]} has shape {list(tensor.shape)}")
    return tuple(tensor.shape)


def _count(mapped: Mapped, prefix: str) -> int:
    """How many indices follow a prefix; gaps show as missing keys."""
    found = {n.removeprefix(prefix).split(".")[0] for n in mapped.tensors if n.startswith(prefix)}
    if not found:
        raise UserError(f"no key begins with {_file_name(mapped, prefix + '0.')}")
    return len(found)
