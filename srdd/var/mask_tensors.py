"""The rules of :mod:`srdd.var.masks` as dense tensors of booleans."""

import torch
from torch import Tensor

from srdd.var.masks import LOCAL_WINDOW, Mask, attention_spans
from srdd.var.scales import ScaleSchedule


def neighbourhood(side: int, device: torch.device | str = "cpu") -> Tensor:
    """Which codes of a grid see which: a window around each, shifted to lie inside the grid.

    The rule of neighbourhood attention (Hassani et al. 2023), as MVAR's finest two scales use it:
    at the border a code still sees ``LOCAL_WINDOW`` squared codes.

    Returns:
        bool [side * side, side * side], True where the query (row) may see the key (column).
    """
    window = min(LOCAL_WINDOW, side)
    place_n = torch.arange(side, device=device)
    first_n = (place_n - window // 2).clamp(0, side - window)
    near_nn = (place_n >= first_n[:, None]) & (place_n < first_n[:, None] + window)
    return (near_nn[:, None, :, None] & near_nn[None, :, None, :]).flatten(2).flatten(0, 1)


def build_mask(mask: Mask, schedule: ScaleSchedule) -> Tensor:
    """The dense mask: the reference of tests and of the dense attention backend.

    Returns:
        bool [L, L], True where the query (row) may see the key (column).
    """
    mask_LL = torch.zeros(schedule.length, schedule.length, dtype=torch.bool)
    for span in attention_spans(mask, schedule):
        own = neighbourhood(span.local_side) if span.local_side else torch.tensor(True)
        mask_LL[span.begin : span.end, span.first : span.end] = own
    return mask_LL
