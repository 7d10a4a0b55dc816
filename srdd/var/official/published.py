"""The published sizes by name (Tian et al. 2024, "Visual Autoregressive Modeling", table 1).

Parameters, in millions, are those that VAR trains; buffers are not counted, and in ours neither is
the transformer's frozen copy of the tokenizer's codebook and phi (0.17 M).

===========  ======  =====  =====  =======  ==========
name         pixels  depth  width  codes L  parameters
===========  ======  =====  =====  =======  ==========
``vqvae``    any                               108.95
``var-d16``     256     16   1024      680     310.28
``var-d20``     256     20   1280      680     600.92
``var-d24``     256     24   1536      680    1033.4
``var-d30``     256     30   1920      680    2010.0
``var-d36``     512     36   2304     2240    2353.9
===========  ======  =====  =====  =======  ==========
"""

from srdd.errors import UserError
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.masks import Mask

VAR_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
VAR_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
HMAR_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
# Each published schedule by its length L.
PATCH_NUMS = {sum(p * p for p in nums): nums for nums in (VAR_256, VAR_512, HMAR_1024)}
_DEPTHS = {"var-d16": 16, "var-d20": 20, "var-d24": 24, "var-d30": 30, "var-d36": 36}


def vqvae(patch_nums: tuple[int, ...] = VAR_256) -> TokenizerConfig:
    """``vae_ch160v4096z32.pth``; one set of weights serves every schedule."""
    return TokenizerConfig(resolution=16 * patch_nums[-1], patch_nums=patch_nums)


def var(
    depth: int,
    patch_nums: tuple[int, ...] = VAR_256,
    *,
    mask: Mask = "block_causal",
    shared_aln: bool = False,
) -> TransformerConfig:
    """A VAR of a depth: 64 channels and one head a block, 1000 classes."""
    return TransformerConfig(
        patch_nums=patch_nums,
        mask=mask,
        depth=depth,
        width=64 * depth,
        num_heads=depth,
        shared_aln=shared_aln,
    )


def get_published(
    name: str, mask: Mask = "block_causal"
) -> tuple[TokenizerConfig, TransformerConfig]:
    """Tokenizer and transformer of a published size; d36 is the one at 512 pixels.

    Raises:
        UserError: there is none of that name.
    """
    if name not in _DEPTHS:
        raise UserError(f"no published size {name!r}; there are {', '.join(_DEPTHS)}")
    large = name == "var-d36"
    patch_nums = VAR_512 if large else VAR_256
    return vqvae(patch_nums), var(_DEPTHS[name], patch_nums, mask=mask, shared_aln=large)
