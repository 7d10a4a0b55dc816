"""Drawing codes from logits, and which of them a refinement pass draws again."""

import torch
from torch import Tensor

from srdd.config import SamplerConfig


def truncate(probs_BlV: Tensor, config: SamplerConfig) -> Tensor:
    """Set to zero what may not be drawn: ``epsilon``, then ``top_k``, then ``top_p``.

    Not renormalised. The likeliest code stays, and all stay where all lie below ``epsilon``. As in
    VAR, ``top_p`` acts on what ``top_k`` left: it drops the tail whose mass is at most 1 - top_p.
    """
    if config.epsilon > 0:
        keep = probs_BlV >= config.epsilon
        probs_BlV = torch.where(keep.any(-1, keepdim=True) & ~keep, 0.0, probs_BlV)
    vocab = probs_BlV.shape[-1]
    if 0 < config.top_k < vocab:
        floor = probs_BlV.topk(config.top_k, dim=-1).values[..., -1:]
        probs_BlV = torch.where(probs_BlV < floor, 0.0, probs_BlV)
    if config.top_p < 1:
        ascending, order = probs_BlV.sort(dim=-1, stable=True)
        tail = ascending.cumsum(-1) <= (1 - config.top_p) * ascending.sum(-1, keepdim=True)
        tail[..., -1] = False
        probs_BlV = probs_BlV.scatter(-1, order, torch.where(tail, 0.0, ascending))
    return probs_BlV


def draw(probs_BlV: Tensor, uniform_Bl: Tensor, config: SamplerConfig) -> Tensor:
    """Draw codes by inverse CDF: float [B, l, V], uniforms in [0, 1) -> int64 [B, l]."""
    cdf_BlV = truncate(probs_BlV, config).double().cumsum(-1)
    aim_Bl1 = uniform_Bl[..., None] * cdf_BlV[..., -1:]
    return torch.searchsorted(cdf_BlV, aim_Bl1, right=True)[..., 0]


def code_probs(probs_BlV: Tensor, codes_Bl: Tensor) -> Tensor:
    """The probability of each code: [B, l]."""
    return probs_BlV.gather(-1, codes_Bl[..., None])[..., 0]


def candidates(probs_Bl: Tensor, config: SamplerConfig) -> Tensor:
    """Which codes a pass draws again, given the probability of each (guided, T = 1, untruncated).

    ``simple`` (SR) redraws all, ``masked`` (MR) those below ``resample_threshold``
    (paper, Sec. 3.3b).

    Returns:
        bool [B, l].
    """
    if config.resample == "simple":
        return torch.ones_like(probs_Bl, dtype=torch.bool)
    return probs_Bl < config.resample_threshold
