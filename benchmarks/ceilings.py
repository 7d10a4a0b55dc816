"""What torch gets out of the device, measured in the same run.

Matrix products, convolutions (by another library, and at another rate) and memory copies.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import clock
from srdd.nn.linear import RowLinear


def matmul_flops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """The best rate of a square product of random matrices, by any library, in FLOP/s."""
    sides = (4096, 8192) if device.type == "cuda" else (1024, 2048)
    return max(_matmul(device, dtype, side, repeats) for side in sides)


def conv_flops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """The best rate of a 3x3 convolution as wide as the decoder's, in either layout, in FLOP/s."""
    batch, channels, side = (16 if device.type == "cuda" else 1), 160, 256
    x = torch.randn(batch, channels, side, side, device=device).to(dtype)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
    flops = 2 * 9 * channels * x.numel()
    rates = []
    for layout in (torch.contiguous_format, torch.channels_last):
        a, b = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        convolve = partial(F.conv2d, a, b, padding=1)
        convolve()
        best = min(clock(convolve, device)[0] for _ in range(repeats))
        rates.append(flops / best)
    return max(rates)


def copy_bytes(device: torch.device, repeats: int = 5) -> float:
    """The best rate of a copy far larger than any cache, bytes read plus written, per second."""
    count = (1 << 31 if device.type == "cuda" else 1 << 27) // 4  # 2 GiB, or 128 MiB
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(clock(lambda: target.copy_(source), device)[0] for _ in range(repeats))
    return 2 * source.nbytes / best


def _matmul(device: torch.device, dtype: torch.dtype, side: int, repeats: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    layer = RowLinear(side, side, bias=False, device=device, dtype=dtype).eval()
    calls = 10 if device.type == "cuda" else 1

    def many(product: Callable[[], Tensor]) -> None:
        for _ in range(calls):
            product()

    best = math.inf
    with torch.no_grad():
        for product in (partial(torch.mm, a, b, out=out), partial(layer, a)):
            run = partial(many, product)
            run()
            best = min(best, *(clock(run, device)[0] for _ in range(repeats)))
    return 2 * side**3 * calls / best
