"""The distribution of one scale's codes: evaluated in slices, truncated, drawn from."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.var.config import SamplerConfig

_ROWS_CPU, _ROWS_DEVICE = 256, 8192  # rows of logits at once: what the cache holds; the memory


class Categorical:
    """Guided probabilities of a scale's codes at temperature 1.

    The linear head runs when codes are drawn, in slices, so that [B, l, V] is never whole.

    Args:
        h_BlW: the network's output before its linear head, guided.
        head: the linear head.
        keep: compute the probabilities [B, l, V] now, for several draws.
    """

    def __init__(self, h_BlW: Tensor, head: nn.Module, keep: bool = False) -> None:
        self.h_BlW = h_BlW
        self.head = head
        self.probs_BlV: Tensor | None = None
        if keep:
            slices = [probs_nV for _, probs_nV in self._slices()]
            self.probs_BlV = torch.cat(slices).unflatten(0, h_BlW.shape[:2])

    def select(self, images: Tensor) -> "Categorical":
        """The distribution of some images' codes, by index or mask."""
        some = Categorical(self.h_BlW[images], self.head)
        some.probs_BlV = None if self.probs_BlV is None else self.probs_BlV[images]
        return some

    def draw(
        self,
        uniform_Bl: Tensor,
        config: SamplerConfig,
        codes_Bl: Tensor | None = None,
        redraw_Bl: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw all codes, or only some.

        Args:
            uniform_Bl: float64 in [0, 1), a number for each code.
            config: how the distribution is truncated.
            codes_Bl: int64, the codes that stay where ``redraw_Bl`` is False.
            redraw_Bl: bool; None draws all codes.

        Returns:
            Codes int64 [B, l], and the probability of each before truncation [B, l]: NaN where
            the network's output was not finite.
        """
        drawn, likely = [], []
        for rows, probs_nV in self._slices():
            codes_n = draw(probs_nV, uniform_Bl.flatten()[rows], config)
            if codes_Bl is not None and redraw_Bl is not None:
                kept_n = codes_Bl.flatten()[rows]
                codes_n = torch.where(redraw_Bl.flatten()[rows], codes_n, kept_n)
            drawn.append(codes_n)
            likely.append(code_probs(probs_nV, codes_n))
        shape = uniform_Bl.shape
        return torch.cat(drawn).view(shape), torch.cat(likely).view(shape)

    def _slices(self) -> Iterator[tuple[slice, Tensor]]:
        step = _ROWS_CPU if self.h_BlW.is_cpu else _ROWS_DEVICE
        h_nW = self.h_BlW.flatten(0, 1)
        kept = None if self.probs_BlV is None else self.probs_BlV.flatten(0, 1)
        for begin in range(0, max(1, len(h_nW)), step):
            rows = slice(begin, begin + step)
            if kept is not None:
                yield rows, kept[rows]
            else:
                yield rows, self.head(h_nW[rows]).float().softmax(-1)


def truncate(probs_nV: Tensor, config: SamplerConfig) -> Tensor:
    """Set to zero what may not be drawn: ``epsilon``, then ``top_k``, then ``top_p``.

    Not renormalised. The likeliest code stays, and all stay where all lie below ``epsilon``. As in
    VAR, ``top_p`` acts on what ``top_k`` left: it drops the tail whose mass is at most 1 - top_p.
    """
    if config.epsilon > 0:
        keep = probs_nV >= config.epsilon
        probs_nV = torch.where(keep.any(-1, keepdim=True) & ~keep, 0.0, probs_nV)
    vocab = probs_nV.shape[-1]
    kept = config.top_k if 0 < config.top_k < vocab else vocab
    if config.top_p == 1:
        if kept == vocab:
            return probs_nV
        floor_n1 = probs_nV.topk(kept, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        return torch.where(probs_nV < floor_n1, 0.0, probs_nV)
    likeliest_nk = probs_nV.topk(kept, dim=-1).values  # only what top_k left is sorted
    mass_nk = likeliest_nk.cumsum(-1)
    within_nk = mass_nk - likeliest_nk < config.top_p * mass_nk[..., -1:]
    count_n1 = within_nk.sum(-1, keepdim=True).clamp_min_(1)
    floor_n1 = likeliest_nk.gather(-1, count_n1 - 1)
    # Of codes exactly as likely as the last one kept, the first in the vocabulary go.
    spare_n1 = (likeliest_nk >= floor_n1).sum(-1, keepdim=True) - count_n1
    tied_nV = (probs_nV == floor_n1).cumsum(-1, dtype=torch.int32)
    drop_nV = (probs_nV < floor_n1) | ((probs_nV == floor_n1) & (tied_nV <= spare_n1))
    return torch.where(drop_nV, 0.0, probs_nV)


def draw(probs_nV: Tensor, uniform_n: Tensor, config: SamplerConfig) -> Tensor:
    """Draw codes by inverse CDF: float [..., V], uniforms in [0, 1) [...] -> int64 [...].

    In float64, and in two steps: a group of codes, then one of the group. So most sums are no
    prefix sums, and no [n, V] array of float64 is made.
    """
    shape, uniform_n = uniform_n.shape, uniform_n.flatten()
    allowed_nV = truncate(probs_nV.flatten(0, -2), config)
    vocab = allowed_nV.shape[-1]
    size = next(c for c in range(math.isqrt(vocab), 0, -1) if vocab % c == 0)
    groups_ngc = allowed_nV.unflatten(-1, (vocab // size, size))
    cdf_ng = groups_ngc.sum(-1, dtype=torch.float64).cumsum(-1)
    aim_n1 = uniform_n[:, None] * cdf_ng[:, -1:]
    group_n1 = torch.searchsorted(cdf_ng, aim_n1, right=True).clamp_max_(vocab // size - 1)
    members_n1c = groups_ngc.gather(1, group_n1[..., None].expand(-1, 1, size))
    cdf_nc = members_n1c[:, 0].double().cumsum(-1)
    aim_n1 = aim_n1 - F.pad(cdf_ng, (1, 0)).gather(1, group_n1)
    # Strictly inside the group whatever rounding did, or a code of probability 0 could be drawn.
    aim_n1 = aim_n1.clamp_min_(0).minimum(cdf_nc[:, -1:] * (1 - 2.0**-52))
    member_n1 = torch.searchsorted(cdf_nc, aim_n1, right=True).clamp_max_(size - 1)
    return (group_n1 * size + member_n1).view(shape)


def code_probs(probs_nV: Tensor, codes_n: Tensor) -> Tensor:
    """The probability of each code: [n]."""
    return probs_nV.gather(-1, codes_n[..., None])[..., 0]
