"""The tokenizer in the plainest form, on our weights: a reference without tricks.

Contiguous tensors, the whole batch at once, attention as two matrix products.
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def encode(w: Weights, images: Tensor, levels: int, num_res_blocks: int = 2) -> Tensor:
    """Images to latents before quantisation: [B, 3, R, R] -> [B, C, N, N]."""
    h = _conv(w, "encoder.conv_in", images)
    for i in range(levels):
        for j in range(num_res_blocks):
            h = _res_block(w, f"encoder.down.{i}.block.{j}", h)
            if i == levels - 1:
                h = _attention(w, f"encoder.down.{i}.attn.{j}", h)
        if i < levels - 1:
            name = f"encoder.down.{i}.downsample.conv"
            h = F.conv2d(F.pad(h, (0, 1, 0, 1)), w[f"{name}.weight"], w[f"{name}.bias"], stride=2)
    h = _middle(w, "encoder.mid", h)
    h = _conv(w, "encoder.conv_out", F.silu(_norm(w, "encoder.norm_out", h)))
    return _conv(w, "quant_conv", h)


def decode(w: Weights, f_hat: Tensor, levels: int, num_res_blocks: int = 2) -> Tensor:
    """Latents to images: [B, C, N, N] -> [B, 3, R, R], not clamped."""
    h = _conv(w, "decoder.conv_in", _conv(w, "post_quant_conv", f_hat))
    h = _middle(w, "decoder.mid", h)
    for i in reversed(range(levels)):
        for j in range(num_res_blocks + 1):
            h = _res_block(w, f"decoder.up.{i}.block.{j}", h)
            if i == levels - 1:
                h = _attention(w, f"decoder.up.{i}.attn.{j}", h)
        if i > 0:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
            h = _conv(w, f"decoder.up.{i}.upsample.conv", h)
    return _conv(w, "decoder.conv_out", F.silu(_norm(w, "decoder.norm_out", h)))


def quantise(w: Weights, f: Tensor, sides: tuple[int, ...], num_phi: int) -> Tensor:
    """Latents to the nearest codes, scale by scale: [B, C, N, N] -> int64 [B, L]."""
    rest, codes = f, []
    codebook_VC = w["quantizer.codebook.weight"]
    for scale, side in enumerate(sides):
        z = F.interpolate(rest, size=(side, side), mode="area").flatten(2).transpose(1, 2)
        squares = z.square().sum(2, keepdim=True) + codebook_VC.square().sum(1)
        codes.append((squares - 2 * z @ codebook_VC.T).argmin(2))
        rest = rest - increment(w, codes[-1], scale, sides, num_phi)
    return torch.cat(codes, 1)


def cumulative(w: Weights, codes_BL: Tensor, sides: tuple[int, ...], num_phi: int) -> list[Tensor]:
    """The latent map after each scale: int64 [B, L] -> S times [B, C, N, N]."""
    parts = codes_BL.split([side * side for side in sides], dim=1)
    maps = [increment(w, part, scale, sides, num_phi) for scale, part in enumerate(parts)]
    return list(itertools.accumulate(maps))


def increment(
    w: Weights, codes_Bl: Tensor, scale: int, sides: tuple[int, ...], num_phi: int
) -> Tensor:
    """What one scale's codes add to the latent map: int64 [B, l] -> [B, C, N, N]."""
    side = sides[scale]
    h = w["quantizer.codebook.weight"][codes_Bl].transpose(1, 2)
    h = h.reshape(len(codes_Bl), -1, side, side)
    if side != sides[-1]:
        h = F.interpolate(h, size=(sides[-1], sides[-1]), mode="bicubic")
    phi = f"quantizer.phi.convs.{_phi(scale, len(sides), num_phi)}"
    smooth = F.conv2d(h, w[f"{phi}.weight"], w[f"{phi}.bias"], padding=1)
    return h.mul(0.5) + smooth.mul(0.5)


def _phi(scale: int, scales: int, count: int) -> int:
    """Which of VAR's shared convolutions a scale uses."""
    edge = 1 / count / (3 if count == 4 else 2)
    ticks = np.linspace(edge, 1 - edge, count)
    return int(np.argmin(np.abs(ticks - scale / max(1, scales - 1))))


def _conv(w: Weights, name: str, x: Tensor) -> Tensor:
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)


def _norm(w: Weights, name: str, x: Tensor) -> Tensor:
    channels = x.shape[1]
    groups = 32 if channels % 32 == 0 else math.gcd(channels, 8)
    return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def _res_block(w: Weights, name: str, x: Tensor) -> Tensor:
    h = _conv(w, f"{name}.conv1", F.silu(_norm(w, f"{name}.norm1", x)))
    h = _conv(w, f"{name}.conv2", F.silu(_norm(w, f"{name}.norm2", h)))
    narrow = f"{name}.nin_shortcut.weight" in w
    return h + (_conv(w, f"{name}.nin_shortcut", x) if narrow else x)


def _attention(w: Weights, name: str, x: Tensor) -> Tensor:
    qkv = _conv(w, f"{name}.qkv", _norm(w, f"{name}.norm", x)).flatten(2)
    q, k, v = (part.contiguous() for part in qkv.chunk(3, dim=1))  # [B, C, hw] each
    scores = torch.bmm(q.transpose(1, 2), k) / math.sqrt(x.shape[1])
    h = torch.bmm(v, scores.softmax(2).transpose(1, 2))
    return x + _conv(w, f"{name}.proj_out", h.view_as(x))


def _middle(w: Weights, name: str, x: Tensor) -> Tensor:
    h = _attention(w, f"{name}.attn_1", _res_block(w, f"{name}.block_1", x))
    return _res_block(w, f"{name}.block_2", h)
