"""VAR's published parameter names, mapped to ours.

VAR's buffers (attention mask, level indices, zero key bias, usage counts) are left out: a mask
that came back from a causal checkpoint would undo the Markov property.
"""

import re

from torch import Tensor

_DROP = re.compile(r"(^|\.)(attn_bias_for_masking|lvl_1L|zero_k_bias|ema_vocab_hit_SV)$")
_TOKENIZER = (
    (r"^quantize\.embedding\.", "quantizer.codebook."),
    (r"^quantize\.quant_resi\.qresi_ls\.", "quantizer.phi.convs."),
    (r"^quantize\.quant_resi\.qresi\.", "quantizer.phi.convs.0."),  # one phi, fully shared
    (r"^quantize\.quant_resi\.(\d+)\.", r"quantizer.phi.convs.\1."),  # one phi a scale
)
_TRANSFORMER = (
    (r"^pos_1LC$", "pos_embed"),
    (r"^lvl_embed\.", "level_embed."),
    (r"^head_nm\.ada_lin\.1\.", "head_ada."),
    (r"^shared_ada_lin\.1\.", "shared_ada_lin."),
    (r"\.ada_lin\.1\.", ".ada_lin."),
    (r"\.attn\.mat_qkv\.", ".attn.qkv."),
    (r"\.attn\.scale_mul_1H11$", ".attn.log_scale"),
)


def _rename(tensors: dict[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        if _DROP.search(name):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def from_vqvae(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAR tokenizer's state dict under our names (:class:`srdd.tokenizer.Tokenizer`)."""
    return _rename(tensors, _TOKENIZER)


def from_var(tensors: dict[str, Tensor], tokenizer: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAR transformer's state dict under our names, with the tokenizer's frozen quantizer.

    Args:
        tensors: VAR's transformer.
        tokenizer: what :func:`from_vqvae` returned.
    """
    renamed = _rename(tensors, _TRANSFORMER)
    for name, tensor in renamed.items():
        if name.endswith(".log_scale"):
            renamed[name] = tensor[0]  # [1, H, 1, 1] -> [H, 1, 1]
    frozen = {name: t for name, t in tokenizer.items() if name.startswith("quantizer.")}
    return {**renamed, **frozen}
