"""Cost of sampling in floating-point operations, counted as twice the multiply-adds.

Closed forms for the transformer, torch's own counter for the convolutional decoder. Matrix
products and convolutions count; norms, activations and interpolation do not.
"""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from srdd.nn.autoencoder import Decoder, prepare_upsampling
from srdd.var.config import TokenizerConfig, TransformerConfig


def pass_flops(
    config: TransformerConfig,
    length: int,
    seen: int,
    *,
    guided: bool,
    first: bool,
    head: bool = True,
) -> int:
    """One evaluation of the network on one scale of one image.

    Args:
        config: the transformer's.
        length: codes of the scale.
        seen: codes that each attends to.
        guided: the unconditional half runs too; it shares embedding and linear head.
        first: the start token, which needs no word embedding.
        head: codes are drawn; else the scale's keys and values alone are needed.
    """
    width = config.width
    hidden = round(width * config.mlp_ratio)
    linear = 2 * length * width * (3 * width + width + 2 * hidden)
    attention = 4 * length * seen * width
    blocks = config.depth * (linear + attention) * (2 if guided else 1)
    embed = 0 if first else 2 * length * config.z_channels * width
    return blocks + embed + (2 * length * width * config.vocab_size if head else 0)


def conditioning_flops(config: TransformerConfig) -> int:
    """AdaLN of all blocks and of the head for one class."""
    layers = 1 if config.shared_aln else config.depth
    return 2 * config.width * config.width * (6 * layers + 2)


def increment_flops(config: TransformerConfig) -> int:
    """Phi's 3x3 convolution over the finest grid: one increment to f_hat of one image."""
    return 2 * 9 * config.z_channels**2 * config.patch_nums[-1] ** 2


@cache
def decoder_flops(config: TokenizerConfig) -> int:
    """Decoding one image's latent without gradients, counted by torch on the meta device."""
    side = config.patch_nums[-1]
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        latent = torch.empty(1, config.z_channels, side, side)
        torch.nn.Conv2d(config.z_channels, config.z_channels, 3, padding=1)(latent)
        decoder = Decoder(config)
        prepare_upsampling(decoder)
        decoder(latent)
    return int(counter.get_total_flops())
