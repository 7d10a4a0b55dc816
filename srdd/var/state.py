"""Images between two scales. States can be selected from and joined."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.generator import Cost, Given
from srdd.var.attention import AttentionConstants, KVCache
from srdd.var.cost import decoder_flops
from srdd.var.plan import Plan, ScalePlan
from srdd.var.transformer import Conditioning


@dataclass(frozen=True, slots=True)
class SampleState:
    """Images between two scales: row b is one image, whatever stands beside it.

    Under guidance there are two halves, the conditional one first.
    """

    plan: Plan
    step: int  # scales done
    seeds_B: Tensor  # int64
    uniforms_BL: Tensor  # float64, what each code's first draw uses
    conditioning: Conditioning  # each part [halves, B, ...]
    constants: Sequence[AttentionConstants]
    f_hat: Tensor  # [B, C, N, N], what the scales done have built
    codes_BL: Tensor  # int64, of the scales done
    given: Given | None  # of all scales, on the device
    cache: KVCache | None  # where the mask looks back
    nfe_B: Tensor  # int64 on the CPU
    flops_B: Tensor  # int64 on the CPU, the decoder's not counted
    fault_B: Tensor  # int64, names the first evaluation that was not finite; 0: none

    def __len__(self) -> int:
        return len(self.seeds_B)

    @property
    def num_steps(self) -> int:
        """Scales in all."""
        return len(self.plan.scales)

    @property
    def scale(self) -> ScalePlan:
        """What to do at the next scale."""
        return self.plan.scales[self.step]

    @property
    def cost(self) -> Cost:
        """What the images cost so far, with the decoder."""
        return Cost(self.nfe_B, self.flops_B + decoder_flops(self.plan.tokenizer))

    def select(self, rows: Tensor) -> Self:
        """Some images, by index or mask (a copy)."""
        counted = rows.cpu()
        given = self.given
        return replace(
            self,
            seeds_B=self.seeds_B[rows],
            uniforms_BL=self.uniforms_BL[rows],
            conditioning=self.conditioning.map(lambda part: part[:, rows]),
            f_hat=self.f_hat[rows],
            codes_BL=self.codes_BL[rows],
            given=Given(given.codes_BL[rows], given.keep_BL[rows]) if given is not None else None,
            cache=self.cache.select(rows) if self.cache is not None else None,
            nfe_B=self.nfe_B[counted],
            flops_B=self.flops_B[counted],
            fault_B=self.fault_B[rows],
        )

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """One batch of states at the same scale of equal plans.

        Raises:
            UserError: they stand at different scales, or their plans differ.
        """
        first = states[0]
        if any(state.step != first.step or state.plan != first.plan for state in states):
            raise UserError(
                "states can be joined at the same step of the same settings, and where the same "
                "scales are given whole"
            )
        caches = [state.cache for state in states if state.cache is not None]
        classes = zip(*(state.conditioning for state in states), strict=True)
        return replace(
            first,
            seeds_B=torch.cat([state.seeds_B for state in states]),
            uniforms_BL=torch.cat([state.uniforms_BL for state in states]),
            conditioning=Conditioning(*(torch.cat(part, dim=1) for part in classes)),
            f_hat=torch.cat([state.f_hat for state in states]),
            codes_BL=torch.cat([state.codes_BL for state in states]),
            given=_join_given(states),
            cache=KVCache.join(caches) if caches else None,
            nfe_B=torch.cat([state.nfe_B for state in states]),
            flops_B=torch.cat([state.flops_B for state in states]),
            fault_B=torch.cat([state.fault_B for state in states]),
        )


def _join_given(states: Sequence[SampleState]) -> Given | None:
    """The codes given of all states; nothing is kept for those that have none."""
    if all(state.given is None for state in states):
        return None
    parts = []
    for state in states:
        none_BL = torch.zeros_like(state.uniforms_BL, dtype=torch.bool)
        parts.append(state.given or Given(none_BL.long(), none_BL))
    return Given(
        torch.cat([part.codes_BL for part in parts]), torch.cat([part.keep_BL for part in parts])
    )
