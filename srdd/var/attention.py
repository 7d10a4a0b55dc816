"""Self-attention over scales: one SDPA a scale, so that no L x L mask is built.

All scales at once, as in training, there are other ways to the same values; :data:`BACKENDS`
names them and :func:`choose_backend` picks one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.nn.linear import RowLinear
from srdd.var.mask_tensors import build_mask, neighbourhood
from srdd.var.masks import AttentionSpan, Mask, attention_spans, first_scale_seen
from srdd.var.scales import ScaleSchedule

_MAX_LOG_SCALE = math.log(100)
_TINY = 1e-12  # the least norm divided by (torch.nn.functional.normalize's)
_FLEX_LENGTH = 1500  # below, FlexAttention's 128 x 128 blocks waste more than they skip

Backend = Literal["scales", "varlen", "flex", "dense"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


class AttentionConstants(NamedTuple):
    """What a layer's weights alone decide."""

    bias_3W: Tensor  # of queries, keys (zero) and values
    scale_2H1: Tensor | None  # length of queries and of keys, float32; None: not normalised


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of the scales done, for every block, preallocated for the whole schedule."""

    keys: Tensor  # [D, halves, B, H, L, hd]: guidance's conditional half, then the other
    values: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], length: int, like: Tensor) -> "KVCache":
        """Room for ``length`` codes, on ``like``'s device and in its dtype.

        Args:
            shape: blocks D, halves, images B, heads H, head size hd.
            length: L, the codes of all scales visited.
            like: a tensor of the model.
        """
        room = (*shape[:4], length, shape[4])
        return cls(like.new_empty(room), like.new_empty(room))

    @classmethod
    def join(cls, caches: Sequence["KVCache"]) -> "KVCache":
        """The cache of the images of several (a copy)."""
        keys = torch.cat([cache.keys for cache in caches], dim=2)
        return cls(keys, torch.cat([cache.values for cache in caches], dim=2))

    def select(self, rows: Tensor) -> "KVCache":
        """The cache of some images (a copy)."""
        return KVCache(self.keys[:, :, rows], self.values[:, :, rows])

    def extend(
        self, depth: int, k: Tensor, v: Tensor, span: AttentionSpan, write: bool
    ) -> tuple[Tensor, Tensor]:
        """Keys and values that a scale sees: earlier scales' from the cache, its own given.

        ``write`` stores the scale's own; a refinement pass leaves those of the first pass.
        """
        images = self.keys.shape[2]
        halves = len(k) // max(1, images)
        keys, values = self.keys[depth, :halves], self.values[depth, :halves]
        if write:
            keys[:, :, :, span.begin : span.end] = k.unflatten(0, (halves, images))
            values[:, :, :, span.begin : span.end] = v.unflatten(0, (halves, images))
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        if write:
            return keys[:, :, span.first : span.end], values[:, :, span.first : span.end]
        seen = slice(span.first, span.begin)
        return torch.cat((keys[:, :, seen], k), dim=2), torch.cat((values[:, :, seen], v), dim=2)


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

    def project(self, x: Tensor, constants: AttentionConstants) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: [B, l, W] -> three times [B, H, l, hd]."""
        bias_3W, scale_2H1 = constants
        qkv = self.qkv(x, bias_3W)
        qkv = qkv.unflatten(-1, (3, self.num_heads, x.shape[-1] // self.num_heads))
        if scale_2H1 is not None:  # cosine attention: unit keys, queries of a learned length
            qk = qkv[:, :, :2]
            norm = torch.linalg.vector_norm(qk, dim=-1, keepdim=True, dtype=torch.float32)
            factor = scale_2H1 / norm.clamp_min(_TINY)
            if torch.is_grad_enabled():
                qkv = torch.cat(((qk * factor).to(qkv.dtype), qkv[:, :, 2:]), dim=2)
            else:
                qk.mul_(factor)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attention of all queries to all keys: [B, H, l, hd] -> [B, H, l, hd]."""
        return F.scaled_dot_product_attention(q, k, v, allowed, scale=self.softmax_scale)

    def merge(self, out: Tensor) -> Tensor:
        """Join the heads and project: [B, H, l, hd] -> [B, l, W]."""
        y: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return y


def attention_constants(layers: Sequence[SelfAttention]) -> list[AttentionConstants]:
    """What the weights of some layers decide, the same in every call; computed for all at once."""
    q_bias_DW = torch.stack([layer.q_bias for layer in layers])
    v_bias_DW = torch.stack([layer.v_bias for layer in layers])
    bias_D3W = torch.cat((q_bias_DW, torch.zeros_like(q_bias_DW), v_bias_DW), dim=1).unbind(0)
    if not layers[0].l2_norm:
        return [AttentionConstants(bias_3W, None) for bias_3W in bias_D3W]
    log_scale_DH1 = torch.stack([layer.log_scale for layer in layers]).squeeze(-1).float()
    q_scale_DH1 = log_scale_DH1.clamp_max(_MAX_LOG_SCALE).exp()
    scale_D2H1 = torch.stack((q_scale_DH1, torch.ones_like(q_scale_DH1)), dim=1).unbind(0)
    return [AttentionConstants(*pair) for pair in zip(bias_D3W, scale_D2H1, strict=True)]


def choose_backend(mask: Mask, length: int, like: Tensor) -> Backend:
    """The backend for all scales at once.

    ``scales`` (one SDPA a scale) is the reference and the only one with gradients on CPU. On
    CUDA ``varlen`` runs the Markovian mask as one kernel in half precision, and ``flex`` pays for
    long sequences.
    """
    if like.is_cuda:
        half = like.dtype in (torch.float16, torch.bfloat16)
        head = like.shape[-1]
        new = torch.cuda.get_device_capability(like.device) >= (8, 0)
        if mask == "markov" and half and new and head % 8 == 0 and head <= 256:
            return "varlen"
        if mask != "markov_local" and length >= _FLEX_LENGTH:
            return "flex"
    return "scales"


def attend_scales(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    schedule: ScaleSchedule,
    backend: Backend,
    softmax_scale: float,
) -> Tensor:
    """Attention of all scales at once under a mask: three times [B, H, L, hd] -> [B, H, L, hd].

    Every backend gives the same values up to rounding; ``dense`` is the textbook form, which
    needs the whole mask.

    Raises:
        UserError: the backend cannot express the mask.
    """
    if backend == "dense":
        allowed = build_mask(mask, schedule).to(q.device)
        return F.scaled_dot_product_attention(q, k, v, allowed, scale=softmax_scale)
    if (backend == "varlen" and mask != "markov") or (backend == "flex" and mask == "markov_local"):
        raise UserError(f"attention backend {backend!r} cannot express mask {mask!r}: use 'scales'")
    if backend == "varlen":
        return _varlen(q, k, v, schedule, softmax_scale)
    if backend == "flex":
        return _flex(q, k, v, mask, schedule, softmax_scale)
    if q.is_cpu and q.dtype != torch.float32 and torch.is_grad_enabled():
        # Half precision's backward pass is slower than float32's there, and less exact.
        with torch.autocast("cpu", enabled=False):
            out = _by_scale(q.float(), k.float(), v.float(), mask, schedule, softmax_scale)
        return out.to(q.dtype)
    return _by_scale(q, k, v, mask, schedule, softmax_scale)


def _by_scale(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, schedule: ScaleSchedule, softmax_scale: float
) -> Tensor:
    """One SDPA a scale."""
    # Split, not sliced: a slice's gradient is as large as the whole, zeros but for its part.
    sizes = [end - begin for begin, end in schedule.spans]
    pieces = [part.split(sizes, dim=2) for part in (q, k, v)]
    outs = []
    for scale, span in enumerate(attention_spans(mask, schedule)):
        first = first_scale_seen(mask, scale)
        near = neighbourhood(span.local_side, q.device) if span.local_side else None
        own, *seen = (piece[first : scale + 1] for piece in pieces)
        keys, values = (part[0] if len(part) == 1 else torch.cat(part, dim=2) for part in seen)
        outs.append(
            F.scaled_dot_product_attention(own[-1], keys, values, near, scale=softmax_scale)
        )
    return torch.cat(outs, dim=2)


def _varlen(q: Tensor, k: Tensor, v: Tensor, schedule: ScaleSchedule, scale: float) -> Tensor:
    """The Markovian mask as S sequences an image, packed: one flash kernel, no mask at all."""
    from torch.nn.attention.varlen import varlen_attn

    batch, length = q.shape[0], q.shape[2]
    # Made on the device: a copy from the host would wait for it, in every layer.
    images_B1 = torch.arange(batch, device=q.device)[:, None] * length
    starts = torch.cat([images_B1 + begin for begin, _ in schedule.spans], dim=1).flatten()
    cu_seq = F.pad(starts, (0, 1), value=batch * length).to(torch.int32)
    longest = schedule.side**2
    packed = [part.transpose(1, 2).flatten(0, 1) for part in (q, k, v)]  # [B * L, H, hd]
    attend: Any = varlen_attn
    out: Tensor = attend(*packed, cu_seq, cu_seq, longest, longest, scale=scale)
    out = out.view(batch, length, *out.shape[1:])
    return out.transpose(1, 2)


def _flex(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, schedule: ScaleSchedule, scale: float
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    attend = _compiled_flex() if q.is_cuda else flex_attention
    out: Tensor = attend(q, k, v, block_mask=_block_mask(mask, schedule, q.device), scale=scale)
    return out


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _block_mask(mask: Mask, schedule: ScaleSchedule, device: torch.device) -> Any:
    """FlexAttention's block mask of a schedule, built once."""
    from torch.nn.attention.flex_attention import create_block_mask

    sides = torch.tensor([end - begin for begin, end in schedule.spans], device=device)
    scale_L = torch.repeat_interleave(torch.arange(len(sides), device=device), sides)
    first_S = torch.tensor(
        [first_scale_seen(mask, s) for s in range(schedule.num_scales)], device=device
    )

    def allowed(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own, other = scale_L[query], scale_L[key]
        return (other <= own) & (other >= first_S[own])

    length = schedule.length
    return create_block_mask(allowed, None, None, length, length, device=str(device))
