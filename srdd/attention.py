"""Self-attention over scales: one dense SDPA a scale, so that no L x L mask is ever built."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.masks import Mask, first_scale_seen

_MIN_ROWS = 4  # a product of fewer rows takes another CPU kernel, which rounds otherwise
_MAX_LOG_SCALE = math.log(100)


class RowLinear(nn.Linear):
    """A linear layer whose rows do not depend on how many there are.

    On CPU, products of fewer than four rows are padded, so that an image drawn alone equals the
    same image drawn in a batch, bit for bit.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        """[..., C] -> [..., C']."""
        rows = input.shape[:-1].numel()
        if self.training or input.is_cuda or not 0 < rows < _MIN_ROWS:
            return super().forward(input)
        flat = F.pad(input.reshape(rows, -1), (0, 0, 0, _MIN_ROWS - rows))
        return super().forward(flat)[:rows].view(*input.shape[:-1], self.out_features)


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of the scales done, for every block, preallocated for the whole schedule."""

    keys: Tensor  # [D, B, H, L, hd]
    values: Tensor
    spans: tuple[tuple[int, int], ...]  # of the scales visited

    @classmethod
    def empty(
        cls,
        depth: int,
        batch: int,
        heads: int,
        head: int,
        spans: Sequence[tuple[int, int]],
        like: Tensor,
    ) -> "KVCache":
        """Room for the scales of ``spans``, on ``like``'s device and in its dtype."""
        shape = (depth, batch, heads, spans[-1][1], head)
        return cls(like.new_empty(shape), like.new_empty(shape), tuple(spans))

    def select(self, rows: Tensor) -> "KVCache":
        """The cache of some batch rows (a copy)."""
        return KVCache(self.keys[:, rows], self.values[:, rows], self.spans)

    def extend(
        self, depth: int, k: Tensor, v: Tensor, mask: Mask, scale: int, write: bool
    ) -> tuple[Tensor, Tensor]:
        """Keys and values that ``scale`` sees: earlier scales' from the cache, its own given.

        ``write`` stores the scale's own; a refinement pass leaves those of the first pass.
        """
        begin, end = self.spans[scale]
        first = self.spans[first_scale_seen(mask, scale)][0]
        if write:
            self.keys[depth][:, :, begin:end] = k
            self.values[depth][:, :, begin:end] = v
            return self.keys[depth][:, :, first:end], self.values[depth][:, :, first:end]
        keys, values = self.keys[depth][:, :, first:begin], self.values[depth][:, :, first:begin]
        return torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)


class SelfAttention(nn.Module):
    """Multi-head attention with VAR's parameters.

    Shapes:
        x: [B, l, W]; W = H heads of hd each.
    """

    def __init__(self, width: int, num_heads: int, l2_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.l2_norm = l2_norm
        self.qkv = RowLinear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))  # keys have no bias
        self.proj = RowLinear(width, width)
        if l2_norm:
            self.log_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(4.0)))
        self.softmax_scale = 1.0 if l2_norm else 0.25 / math.sqrt(width / num_heads)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: [B, l, W] -> three times [B, H, l, hd]."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = self.qkv(x) + bias
        heads = qkv.unflatten(2, (3, self.num_heads, x.shape[2] // self.num_heads))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if self.l2_norm:
            q = F.normalize(q, dim=-1) * self.log_scale.clamp_max(_MAX_LOG_SCALE).exp()
            k = F.normalize(k, dim=-1)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Dense attention of all queries to all keys: [B, H, l, hd] -> [B, H, l, hd]."""
        return F.scaled_dot_product_attention(q, k, v, scale=self.softmax_scale)

    def merge(self, out: Tensor) -> Tensor:
        """Join the heads and project: [B, H, l, hd] -> [B, l, W]."""
        y: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return y

    def forward(self, x_BLW: Tensor, mask: Mask, spans: Sequence[tuple[int, int]]) -> Tensor:
        """All scales at once, as in training: each attends to the scales its mask shows it."""
        q, k, v = self.project(x_BLW)
        outs = []
        for scale, (begin, end) in enumerate(spans):
            first = spans[first_scale_seen(mask, scale)][0]
            seen = slice(first, end)
            outs.append(self.attend(q[:, :, begin:end], k[:, :, seen], v[:, :, seen]))
        return self.merge(torch.cat(outs, dim=2))
