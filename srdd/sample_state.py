"""Images between two scales, and what sampling returns. States can be split and joined."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from srdd.attention import KVCache
from srdd.transformer import Conditioning


@dataclass(frozen=True, slots=True)
class SampleState:
    """Images between two scales: row b is one image, whatever stands beside it."""

    seeds_B: Tensor  # int64
    conditioning: Conditioning
    null: Conditioning  # one row, the null class
    f_hat: Tensor  # [B, C, N, N], what the scales done have built
    codes_BL: Tensor  # int64, of the scales done
    cache: KVCache | None  # where the mask looks back
    null_cache: KVCache | None  # of the unconditional half
    scale: int  # scales done
    nfe_B: Tensor  # int64, network evaluations; guidance's second half counts
    flops_B: Tensor  # int64

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
    return replace(
        state,
        seeds_B=state.seeds_B[rows],
        conditioning=state.conditioning.select(rows),
        f_hat=state.f_hat[rows],
        codes_BL=state.codes_BL[rows],
        cache=state.cache.select(rows) if state.cache is not None else None,
        null_cache=state.null_cache.select(rows) if state.null_cache is not None else None,
        nfe_B=state.nfe_B[rows],
        flops_B=state.flops_B[rows],
    )


def join(states: Sequence[SampleState]) -> SampleState:
    """Join states that stand at the same scale of the same configuration into one batch."""

    def cat_caches(caches: list[KVCache | None]) -> KVCache | None:
        real = [cache for cache in caches if cache is not None]
        if not real:
            return None
        keys = torch.cat([cache.keys for cache in real], dim=1)
        return KVCache(keys, torch.cat([cache.values for cache in real], dim=1), real[0].spans)

    return SampleState(
        seeds_B=torch.cat([s.seeds_B for s in states]),
        conditioning=Conditioning.cat([s.conditioning for s in states]),
        null=states[0].null,
        f_hat=torch.cat([s.f_hat for s in states]),
        codes_BL=torch.cat([s.codes_BL for s in states]),
        cache=cat_caches([s.cache for s in states]),
        null_cache=cat_caches([s.null_cache for s in states]),
        scale=states[0].scale,
        nfe_B=torch.cat([s.nfe_B for s in states]),
        flops_B=torch.cat([s.flops_B for s in states]),
    )


def split(state: SampleState, sizes: Sequence[int]) -> list[SampleState]:
    """Undo :func:`join`: states of the given numbers of images."""
    rows = torch.arange(len(state), device=state.seeds_B.device)
    return [select(state, part) for part in torch.split(rows, list(sizes))]
