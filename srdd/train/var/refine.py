"""Refinement-aware training: some images see part of a scale's own codes in that scale's input.

It is absorbing discrete diffusion inside a scale. The input is exactly the one that sampling's
feedback "kept" gives, so that refining there is nothing new to the model.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from srdd.rng import Stream, uniform
from srdd.var.quantize import MultiScaleQuantizer
from srdd.var.scales import ScaleSchedule


class Hidden(NamedTuple):
    """What a step hides. ``hidden_BL`` is all true in images that train as usual."""

    refined_B: Tensor  # bool, images that see some of their own codes
    hidden_BL: Tensor  # bool, codes not seen, which are scored


def draw_hidden(
    schedule: ScaleSchedule, index_B: Tensor, refine_share: float, seed: int, step: int
) -> Hidden:
    """Choose images and codes, keyed by seed, step and sample.

    On each scale but the first a share of U(0, 1) is hidden, at least one code: any number from 1
    to all of them is as likely. The first scale has no input that could show its codes.
    """
    refined_B = uniform(index_B, seed, step, Stream.REFINED) < refine_share
    places_L = torch.arange(schedule.length, device=index_B.device)
    order_BL = uniform(index_B[:, None], seed, step, Stream.REFINED_CODES, places_L)
    hidden = []
    for scale, (begin, end) in enumerate(schedule.spans):
        share_B = uniform(index_B, seed, step, Stream.REFINED_SHARE, scale)
        count_B = (share_B * (end - begin)).long() + 1
        rank_Bl = order_BL[:, begin:end].argsort(1).argsort(1)
        hidden.append((rank_Bl < count_B[:, None]) | ~refined_B[:, None] | (scale == 0))
    return Hidden(refined_B, torch.cat(hidden, dim=1))


@torch.no_grad()
def refined_input(quantizer: MultiScaleQuantizer, codes_BL: Tensor, hidden: Hidden) -> Tensor:
    """The transformer's input below the start token, with what each refined image sees.

    Args:
        quantizer: the model's own.
        codes_BL: int64, the true codes.
        hidden: of :func:`draw_hidden`.

    Returns:
        [B, L - l_1, C]: block s is f_hat of the scales before it at scale s, as in
        :meth:`MultiScaleQuantizer.teacher_input`; in refined images
        area(f_hat + phi(up(h * kept))), where h are scale s's own codes.
    """
    schedule = quantizer.schedule
    f_hat, blocks = torch.zeros((), device=codes_BL.device), []
    for scale, (side, (begin, end)) in enumerate(
        zip(schedule.patch_nums, schedule.spans, strict=True)
    ):
        h = quantizer.grid(codes_BL[:, begin:end], side)
        if scale > 0:
            kept = ~hidden.hidden_BL[:, begin:end].view(-1, 1, side, side)
            seen = f_hat + quantizer.increment(h * kept, side)
            shown = torch.where(hidden.refined_B.view(-1, 1, 1, 1), seen, f_hat)
            blocks.append(quantizer.to_scale(shown, side).flatten(2).transpose(1, 2))
        if end < schedule.length:
            f_hat = f_hat + quantizer.increment(h, side)
    if not blocks:
        return quantizer.teacher_input(codes_BL)
    return torch.cat(blocks, dim=1)
