"""The convolutional encoder and decoder of LDM and VAR (vq-f16), with its parameter names.

Attention stands at the lowest level and in the middle; GroupNorm has 32 groups where the width
allows it, as the published weights assume, and fewer for small models.
"""

import math
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.nn.groupnorm import GroupNorm


class AutoencoderConfig(Protocol):
    """The shape of an encoder and its decoder."""

    @property
    def z_channels(self) -> int:
        """Channels of the latent."""

    @property
    def ch(self) -> int:
        """Width of the first level."""

    @property
    def ch_mult(self) -> tuple[int, ...]:
        """Width of each level, in units of ``ch``; the side halves between levels."""

    @property
    def num_res_blocks(self) -> int:
        """Residual blocks of a level of the encoder; the decoder has one more."""


def _norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """Group norm, then SiLU, in place where no gradient needs what it overwrites."""
    normed: Tensor = norm(x)
    return F.silu(normed, inplace=not torch.is_grad_enabled())


def _norm(channels: int) -> nn.GroupNorm:
    groups = 32 if channels % 32 == 0 else math.gcd(channels, 8)
    return GroupNorm(groups, channels, eps=1e-6)


def _in_layout_of(x: Tensor, weight: Tensor) -> Tensor:
    """The map in the memory layout of the weights: channels last where they are (inference)."""
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class ResBlock(nn.Module):
    """Two normed 3x3 convolutions around a skip: [B, C, h, w] -> [B, C', h, w]."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = _norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        h: Tensor = self.conv1(_norm_silu(self.norm1, x))
        h = self.conv2(_norm_silu(self.norm2, h))
        out: Tensor = self.nin_shortcut(x)
        out = out + h if torch.is_grad_enabled() else h.add_(out)
        return out


class AttnBlock(nn.Module):
    """Single-head attention over positions: [B, C, h, w] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over all positions."""
        qkv: Tensor = self.qkv(self.norm(x))
        q, k, v = qkv.flatten(2).transpose(1, 2).chunk(3, dim=-1)  # [B, hw, C] each
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj_out(h.transpose(1, 2).reshape(x.shape))
        return out


class Downsample(nn.Module):
    """Halve the side by a strided convolution, padded right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h/2, w/2]."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double the side: nearest, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.register_buffer("phases", None, persistent=False)  # of weights that stay

    phases: Tensor | None

    def prepare(self) -> None:
        """Compute the phases' kernel, for inference: the weights must not change from here on."""
        self.phases = _in_layout_of(
            _halves(_halves(self.conv.weight.detach(), 3), 2), self.conv.weight
        )

    def train(self, mode: bool = True) -> "Upsample":
        """Training changes the weights: it drops the phases' kernel."""
        if mode:
            self.phases = None
        return super().train(mode)

    def _load_from_state_dict(self, *given: Any) -> None:
        self.phases = None
        super()._load_from_state_dict(*given)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, 2h, 2w].

        Prepared and without gradients by phases: after nearest doubling, each of the four output
        pixels of an input pixel sees a 2x2 neighbourhood of the input, so one 2x2 convolution with
        four times the channels does 4/9 of the multiplications. The same up to rounding.
        """
        bias = self.conv.bias
        if self.phases is None or bias is None or torch.is_grad_enabled():
            out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
            return out
        batch, channels, height, width = x.shape
        fours = F.conv2d(x, self.phases, bias.repeat(4), padding=1)
        phases = fours.permute(0, 2, 3, 1).unflatten(3, (2, 2, channels))
        out = x.new_empty(batch, height, 2, width, 2, channels)
        for i in (0, 1):
            for j in (0, 1):
                out[:, :, i, :, j].copy_(phases[:, i : i + height, j : j + width, i, j])
        return out.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def _halves(weight: Tensor, dim: int) -> Tensor:
    """Three taps over a doubled axis, as two taps for its even and two for its odd places.

    The phases stand one after the other in dimension 0.
    """
    first, middle, last = weight.unbind(dim)
    even = torch.stack((first, middle + last), dim=dim)
    odd = torch.stack((first + middle, last), dim=dim)
    return torch.cat((even, odd))


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, with attention at the lowest one."""

    def __init__(self, widths: list[int], attend: bool) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attend)
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h, w]."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class Encoder(nn.Module):
    """Images to latents: [B, 3, R, R] in [-1, 1] -> [B, C, N, N]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        previous = config.ch
        for i, width in enumerate(widths):
            level = Level([previous] + [width] * config.num_res_blocks, i == last)
            if i != last:
                level.downsample = Downsample(width)
            self.down.append(level)
            previous = width
        self.mid = Middle(previous)
        self.norm_out = _norm(previous)
        self.conv_out = nn.Conv2d(previous, config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        h = self.conv_in(_in_layout_of(x, self.conv_in.weight))
        for level in self.down:
            assert isinstance(level, Level)
            h = level.downsample(level(h))
        out: Tensor = self.conv_out(_norm_silu(self.norm_out, self.mid(h)))
        return out


class Decoder(nn.Module):
    """Latents to images: [B, C, N, N] -> [B, 3, R, R], not clamped."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        levels: list[Level] = []
        previous = widths[-1]
        for i in range(last, -1, -1):
            count = config.num_res_blocks + 1
            level = Level([previous] + [widths[i]] * count, i == last)
            if i != 0:
                level.upsample = Upsample(widths[i])
            levels.insert(0, level)
            previous = widths[i]
        self.up = nn.ModuleList(levels)  # index 0 is the finest, as in the published weights
        self.norm_out = _norm(previous)
        self.conv_out = nn.Conv2d(previous, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Decode."""
        h = self.mid(self.conv_in(_in_layout_of(z, self.conv_in.weight)))
        for i in range(len(self.up) - 1, -1, -1):
            level = self.up[i]
            assert isinstance(level, Level)
            h = level.upsample(level(h))
        out: Tensor = self.conv_out(_norm_silu(self.norm_out, h))
        return out


def prepare_upsampling(decoder: Decoder) -> None:
    """Let a decoder whose weights stay upsample by phases."""
    for module in decoder.modules():
        if isinstance(module, Upsample):
            module.prepare()


def decode_chunk(resolution: int, batch: int, device: torch.device) -> int:
    """Images decoded at once, which bounds the decoder's activations.

    On CPU a function of the resolution alone (one image of 256 pixels, two of 128, at most 8), so
    that pixels never move with the batch. Elsewhere 16 of 256 pixels, and no more than there are.
    """
    if device.type == "cpu":
        return max(1, min(8, 2 * (128 // resolution) ** 2))
    return min(batch, max(1, 16 * 256**2 // resolution**2))


def in_chunks(function: nn.Module, x: Tensor, size: int) -> Tensor:
    """Apply ``function`` to slices of exactly ``size`` rows, the last one padded with zeros."""
    outputs = []
    for begin in range(0, max(1, len(x)), max(1, size)):
        rows = x[begin : begin + size]
        if len(rows) < size:
            padding = rows.new_zeros(size - len(rows), *rows.shape[1:])
            rows = torch.cat((rows, padding))
        outputs.append(function(rows)[: len(x) - begin])
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]
