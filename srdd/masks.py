"""Which scales a scale attends to. The masks are rules, never stored with the weights.

Block s of the input is the map built from scales < s, so attending within block s *is* attending
to the previous scale: the Markovian mask of the paper is the block-diagonal one.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from srdd.scales import ScaleSchedule

Mask = Literal["block_causal", "markov", "previous"]
MASKS: tuple[Mask, ...] = get_args(Mask)


def first_scale_seen(mask: Mask, scale: int) -> int:
    """The coarsest scale that ``scale`` attends to; it sees all from there to itself.

    ``block_causal`` is VAR, ``markov`` SDD. ``previous`` opens one block more and is an ablation:
    after d layers it reaches d scales back, so it is not Markov beyond one layer.
    """
    return {"block_causal": 0, "markov": scale, "previous": max(0, scale - 1)}[mask]


def build_mask(mask: Mask, schedule: ScaleSchedule) -> Tensor:
    """The dense mask, for tests and pictures; the model never builds it.

    Returns:
        bool [L, L], True where the query (row) may see the key (column).
    """
    spans = schedule.spans
    mask_LL = torch.zeros(schedule.length, schedule.length, dtype=torch.bool)
    for scale, (begin, end) in enumerate(spans):
        mask_LL[begin:end, spans[first_scale_seen(mask, scale)][0] : end] = True
    return mask_LL
