"""Classifier-free guidance: how its weight grows with the scale, and how it is applied."""

from collections.abc import Callable

import torch
from torch import Tensor

from srdd.var.config import CfgRamp, SamplerConfig
from srdd.var.scales import ScaleSchedule


def linear(place: float, config: SamplerConfig) -> float:
    """VAR's (s - 1) / (S - 1): the coarsest scale is never guided."""
    return place


def constant(place: float, config: SamplerConfig) -> float:
    """The full weight at every scale."""
    return 1.0


def window(place: float, config: SamplerConfig) -> float:
    """The full weight within ``cfg_window`` (Switti), none outside."""
    low, high = config.cfg_window
    return float(low <= place <= high)


# From a scale's place, 0 to 1, to its share of the weight.
RAMPS: dict[CfgRamp, Callable[[float, SamplerConfig], float]] = {
    "linear": linear,
    "constant": constant,
    "window": window,
}


def weights(config: SamplerConfig, schedule: ScaleSchedule) -> tuple[float, ...]:
    """The guidance weight t of each visited scale: ``cfg`` times the ramp.

    A scale's place is its index in the parent schedule, from 0 to 1.
    """
    last, ramp = max(1, len(schedule.parent) - 1), RAMPS[config.cfg_ramp]
    return tuple(config.cfg * ramp(index / last, config) for index in schedule.parent_index)


def combine(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """(1 + t) cond - t uncond. Linear, so it may stand before the linear head."""
    return torch.lerp(unconditional, conditional, 1 + weight)
