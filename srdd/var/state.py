"""Images between two scales. States can be split and joined."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from srdd.generator import Cost
from srdd.var.attention import AttentionConstants, KVCache
from srdd.var.config import SamplerConfig
from srdd.var.scales import ScaleSchedule
from srdd.var.transformer import Conditioning


@dataclass(frozen=True, slots=True)
class SampleState:
    """Images between two scales: row b is one image, whatever stands beside it.

    Under guidance there are two halves, the conditional one first.
    """

    seeds_B: Tensor  # int64
    uniforms_BL: Tensor  # float64, what each code's first draw uses
    conditioning: Conditioning  # each part [halves, B, ...]
    constants: Sequence[AttentionConstants]
    f_hat: Tensor  # [B, C, N, N], what the scales done have built
    codes_BL: Tensor  # int64, of the scales done
    cache: KVCache | None  # where the mask looks back
    config: SamplerConfig
    schedule: ScaleSchedule  # the scales visited
    step: int  # scales done
    cost: Cost
    fault_B: Tensor  # int64, names the first evaluation that was not finite; 0: none

    def __len__(self) -> int:
        return len(self.seeds_B)

    @property
    def num_steps(self) -> int:
        """Scales in all."""
        return self.schedule.num_scales

    def select(self, rows: Tensor) -> Self:
        """Some images, by index or mask."""
        counted = rows.cpu()
        return replace(
            self,
            seeds_B=self.seeds_B[rows],
            uniforms_BL=self.uniforms_BL[rows],
            conditioning=self.conditioning.map(lambda part: part[:, rows]),
            f_hat=self.f_hat[rows],
            codes_BL=self.codes_BL[rows],
            cache=self.cache.select(rows) if self.cache is not None else None,
            cost=Cost(self.cost.nfe_B[counted], self.cost.flops_B[counted]),
            fault_B=self.fault_B[rows],
        )

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """One batch of states at the same scale of the same settings."""
        caches = [state.cache for state in states if state.cache is not None]
        cache = None
        if caches:
            keys = torch.cat([cache.keys for cache in caches], dim=2)
            values = torch.cat([cache.values for cache in caches], dim=2)
            cache = KVCache(keys, values, caches[0].views)
        parts = zip(*(state.conditioning for state in states), strict=True)
        return replace(
            states[0],
            seeds_B=torch.cat([s.seeds_B for s in states]),
            uniforms_BL=torch.cat([s.uniforms_BL for s in states]),
            conditioning=Conditioning(*(torch.cat(part, dim=1) for part in parts)),
            f_hat=torch.cat([s.f_hat for s in states]),
            codes_BL=torch.cat([s.codes_BL for s in states]),
            cache=cache,
            cost=Cost(
                torch.cat([s.cost.nfe_B for s in states]),
                torch.cat([s.cost.flops_B for s in states]),
            ),
            fault_B=torch.cat([s.fault_B for s in states]),
        )
