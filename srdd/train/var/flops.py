"""The floating-point operations of one image's update; see :meth:`srdd.train.task.Task.flops`.

Attention counts what its mask opens, scale by scale.
"""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from srdd.train.config import TokenizerLossConfig, TransformerLossConfig
from srdd.train.var.adversarial import Discriminator, patch_layers
from srdd.train.var.perceptual import Lpips
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.cost import conditioning_flops, increment_flops, pass_flops
from srdd.var.masks import attention_spans
from srdd.var.tokenizer import Tokenizer


def transformer_flops(config: TransformerConfig, loss: TransformerLossConfig) -> int:
    """One image's update of the transformer, from its codes.

    The backward pass is twice the forward one, but for the word embedding, whose input needs no
    gradient. The frozen quantiser runs forward alone.
    """
    below = config.schedule.length - config.schedule.spans[0][1]
    embed = 2 * below * config.z_channels * config.width
    later = config.schedule.num_scales - 1
    maps = later * increment_flops(config) * (2 if loss.refine_share else 1)
    return 3 * forward_flops(config) - embed + maps


def forward_flops(config: TransformerConfig) -> int:
    """The transformer's logits of all scales of one image, its input given."""
    return conditioning_flops(config) + sum(
        pass_flops(
            config, span.end - span.begin, span.end - span.first, guided=False, first=scale == 0
        )
        for scale, span in enumerate(attention_spans(config.mask, config.schedule))
    )


@cache
def tokenizer_flops(
    config: TokenizerConfig, loss: TokenizerLossConfig, *, adversary: bool = False
) -> int:
    """One image's update of the tokenizer, counted by torch on the meta device.

    Args:
        config: the tokenizer's.
        loss: LPIPS costs two passes of VGG16 forward and one backward.
        adversary: the discriminator has begun: its judgement, and its own update.
    """
    shape = (1, 3, config.resolution, config.resolution)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.empty(shape)
        reconstruction, quantized = Tokenizer(config)(images)
        total = reconstruction.mean() + quantized.loss_S.mean()
        if loss.lpips:
            total = total + Lpips()(reconstruction, images).mean()
        if adversary:
            discriminator = Discriminator(loss.gan_width, patch_layers(loss, config.resolution))
            total = total + discriminator.requires_grad_(False)(reconstruction).mean()
        total.backward()
        if adversary:
            discriminator.requires_grad_(True)
            both = [discriminator(torch.empty(shape)).mean() for _ in range(2)]
            (both[0] + both[1]).backward()
    return int(counter.get_total_flops())
