"""Classifier-free guidance: how its weight grows with the scale, and how it is applied."""

import torch
from torch import Tensor

from srdd.var.config import SamplerConfig
from srdd.var.scales import ScaleSchedule


def weights(config: SamplerConfig, schedule: ScaleSchedule) -> tuple[float, ...]:
    """The guidance weight t of each visited scale: ``cfg`` times the ramp.

    ``linear`` is VAR's (s - 1) / (S - 1) on the parent's index, so the coarsest scale is never
    guided; ``window`` is the full weight on relative scales within ``cfg_window`` (Switti).
    """
    last = max(1, len(schedule.parent) - 1)
    places = [index / last for index in schedule.parent_index]
    low, high = config.cfg_window
    ramp = {
        "linear": places,
        "constant": [1.0] * len(places),
        "window": [float(low <= place <= high) for place in places],
    }[config.cfg_ramp]
    return tuple(config.cfg * value for value in ramp)


def combine(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """(1 + t) cond - t uncond. Linear, so it may stand before the linear head."""
    return torch.lerp(unconditional, conditional, 1 + weight)
