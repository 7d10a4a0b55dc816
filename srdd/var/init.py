"""The weights of a transformer before training."""

import math

import torch
from torch import nn

from srdd.var.transformer import ScaleTransformer


@torch.no_grad()
def init_weights(model: ScaleTransformer, *, gate: float = 1e-3, head: float = 0.02) -> None:
    """VAR's initialisation (``var.py``, ``init_weights``).

    Args:
        model: changed in place, drawing from torch's generator.
        gate: factor of the AdaLN rows that gate the residual branches, at first nearly closed.
        head: factor of the output layer.
    """
    width, depth = model.config.width, model.config.depth
    std = math.sqrt(1 / width / 3)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and not name.startswith("quantizer"):
            nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
    for position in (model.pos_start, model.pos_embed):
        nn.init.trunc_normal_(position, std=std)
    model.head.weight.mul_(head)
    model.head_ada.weight.mul_(0.5)
    for block in model.layers:
        block.attn.proj.weight.div_(math.sqrt(2 * depth))
        block.ffn.fc2.weight.div_(math.sqrt(2 * depth))
        if model.config.shared_aln:
            block.ada_gss[:, :, :2].mul_(gate)
            block.ada_gss[:, :, 2:].mul_(0.5)
        else:
            block.ada_lin.weight[: 2 * width].mul_(gate)
            block.ada_lin.weight[2 * width :].mul_(0.5)
