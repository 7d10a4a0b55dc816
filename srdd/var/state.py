"""Images between two scales, and what sampling returns. States can be split and joined."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from srdd.var.attention import AttentionConstants, KVCache
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
    scale: int  # scales done
    nfe_B: Tensor  # int64 on the CPU, network evaluations; guidance's second half counts
    flops_B: Tensor  # int64 on the CPU
    fault_B: Tensor  # int64, names the first evaluation that was not finite; 0: none

    def __len__(self) -> int:
        return len(self.seeds_B)


@dataclass(frozen=True, slots=True)
class Preview:
    """A scale just drawn: what it decodes to so far."""

    scale: int  # index among the scales visited
    images: Tensor  # [B, 3, R, R] in [0, 1]
    codes_Bl: Tensor  # int64, of this scale


@dataclass(frozen=True, slots=True)
class SampleResult:
    """Finished images and what they cost."""

    images: Tensor  # [B, 3, R, R] in [0, 1]
    codes_BL: Tensor  # int64
    nfe: Tensor  # int64 [B]
    gflops: Tensor  # float64 [B], decoder included


def select(state: SampleState, rows: Tensor) -> SampleState:
    """Some rows of a state."""
    counted = rows.cpu()
    return replace(
        state,
        seeds_B=state.seeds_B[rows],
        uniforms_BL=state.uniforms_BL[rows],
        conditioning=state.conditioning.map(lambda part: part[:, rows]),
        f_hat=state.f_hat[rows],
        codes_BL=state.codes_BL[rows],
        cache=state.cache.select(rows) if state.cache is not None else None,
        nfe_B=state.nfe_B[counted],
        flops_B=state.flops_B[counted],
        fault_B=state.fault_B[rows],
    )


def join(states: Sequence[SampleState]) -> SampleState:
    """Join states that stand at the same scale of the same configuration into one batch."""
    caches = [state.cache for state in states if state.cache is not None]
    cache = None
    if caches:
        keys = torch.cat([cache.keys for cache in caches], dim=2)
        values = torch.cat([cache.values for cache in caches], dim=2)
        cache = KVCache(keys, values, caches[0].views)
    parts = zip(*(state.conditioning for state in states), strict=True)
    return SampleState(
        seeds_B=torch.cat([s.seeds_B for s in states]),
        uniforms_BL=torch.cat([s.uniforms_BL for s in states]),
        conditioning=Conditioning(*(torch.cat(part, dim=1) for part in parts)),
        constants=states[0].constants,
        f_hat=torch.cat([s.f_hat for s in states]),
        codes_BL=torch.cat([s.codes_BL for s in states]),
        cache=cache,
        scale=states[0].scale,
        nfe_B=torch.cat([s.nfe_B for s in states]),
        flops_B=torch.cat([s.flops_B for s in states]),
        fault_B=torch.cat([s.fault_B for s in states]),
    )


def split(state: SampleState, sizes: Sequence[int]) -> list[SampleState]:
    """Undo :func:`join`: states of the given numbers of images."""
    rows = torch.arange(len(state), device=state.seeds_B.device)
    return [select(state, part) for part in torch.split(rows, list(sizes))]
