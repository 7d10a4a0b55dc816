"""Which codes a refinement pass draws again (paper, Sec. 3.3b).

A policy is a function in :data:`RESAMPLE`; :data:`srdd.var.config.Resample` has its name.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from srdd.var.config import Resample, SamplerConfig

Policy = Callable[[Tensor, SamplerConfig], Tensor]


def masked(probs_Bl: Tensor, config: SamplerConfig) -> Tensor:
    """MR: codes less likely than ``resample_threshold``."""
    return probs_Bl < config.resample_threshold


def simple(probs_Bl: Tensor, config: SamplerConfig) -> Tensor:
    """SR: all codes."""
    return torch.ones_like(probs_Bl, dtype=torch.bool)


# From each code's probability (guided, at temperature 1, not truncated) to a bool [B, l].
RESAMPLE: dict[Resample, Policy] = {"masked": masked, "simple": simple}
