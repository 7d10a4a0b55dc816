"""The distribution of one scale's codes, evaluated in slices so that [B, l, V] is never whole."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from srdd.var.config import SamplerConfig
from srdd.var.resample import code_probs, draw

_ROWS_CPU, _ROWS_DEVICE = 256, 8192  # rows of logits at once: what the cache holds; the memory


class CodeLaw:
    """Guided probabilities at temperature 1 of a scale's codes.

    Args:
        h_BlW: the network's output before its linear head.
        head: the linear head.
        keep: hold the probabilities, [B, l, V], for draws to come from the same law.
    """

    def __init__(self, h_BlW: Tensor, head: nn.Module, keep: bool = False) -> None:
        self.h_BlW = h_BlW
        self.head = head
        self.probs_BlV: Tensor | None = None
        if keep:
            slices = [probs_nV for _, probs_nV in self._slices()]
            self.probs_BlV = torch.cat(slices).unflatten(0, h_BlW.shape[:2])

    def select(self, images: Tensor) -> "CodeLaw":
        """The law of some images."""
        law = CodeLaw(self.h_BlW[images], self.head)
        law.probs_BlV = None if self.probs_BlV is None else self.probs_BlV[images]
        return law

    def draw(
        self,
        uniform_Bl: Tensor,
        config: SamplerConfig,
        codes_Bl: Tensor | None = None,
        redraw_Bl: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw codes, or those of ``codes_Bl`` that ``redraw_Bl`` names.

        Returns:
            Codes int64 [B, l] and the probability of each [B, l]; NaN where the law is not finite.
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
