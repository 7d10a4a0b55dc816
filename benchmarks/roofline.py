"""The floor under the sampling loop: operations and bytes that it cannot do without.

Each matrix product and convolution reads its inputs and weights and writes its output once;
everything else is free. AdaLN is computed once, guidance stands before the linear head, and the
first scale, which is not guided, runs one half (under ``block_causal`` one more row, whose keys
and values later scales see). No kernel workspace, no launch, no padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.masks import first_scale_seen
from srdd.var.tokenizer import Tokenizer

Rates = dict[tuple[bool, int], float]  # FLOP/s by (convolution, bytes of a number)
_FLOAT = 4  # bytes; head, codebook and phi stay in float32


@dataclass(frozen=True, slots=True)
class Work:
    """One product: operations and bytes."""

    part: str
    flops: int
    bytes: int
    itemsize: int  # bytes of a number: with the next field it decides the ceiling
    conv: bool = False


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time of a part, if each of its products ran at the ceiling that binds it."""

    flops: int
    bytes: int
    compute_s: float  # if nothing but operations took time
    traffic_s: float  # if nothing but bytes did
    seconds: float


def sampling_work(
    config: TransformerConfig, batch: int, itemsize: int, cfg: float, sides: tuple[int, ...] = ()
) -> Iterator[Work]:
    """The transformer's products for a batch, scale by scale, and phi's convolutions."""
    schedule = config.schedule.prune(sides or config.patch_nums)
    width, hidden = config.width, round(config.width * config.mlp_ratio)
    classes = batch + (cfg > 0)
    for _ in range(config.depth):
        yield _linear("adaln", classes, width, 6 * width, itemsize)
    yield _linear("adaln", classes, width, 2 * width, itemsize)
    for scale, (begin, end) in enumerate(schedule.spans):
        length = end - begin
        first = first_scale_seen(config.mask, scale)
        seen = end - schedule.spans[first][0]
        if cfg == 0:
            rows = batch
        elif scale == 0:
            looks_back = first_scale_seen(config.mask, schedule.num_scales - 1) == 0
            rows = batch + (looks_back and schedule.num_scales > 1)
        else:
            rows = 2 * batch
        for _ in range(config.depth):
            yield _linear("linears", rows * length, width, 3 * width, itemsize)
            moved = itemsize * rows * width * 2 * (length + seen)
            yield Work("attention", 4 * rows * length * seen * width, moved, itemsize)
            yield _linear("linears", rows * length, width, width, itemsize)
            yield _linear("linears", rows * length, width, hidden, itemsize)
            yield _linear("linears", rows * length, hidden, width, itemsize)
        if scale:
            yield _linear("linears", batch * length, config.z_channels, width, itemsize)
        yield _linear("head", batch * length, width, config.vocab_size, _FLOAT)
        grid = batch * config.z_channels * schedule.side**2
        kernel = 9 * config.z_channels**2
        yield Work("phi", 18 * config.z_channels * grid, _FLOAT * (2 * grid + kernel), _FLOAT, True)


def decoder_work(config: TokenizerConfig, batch: int, itemsize: int) -> list[Work]:
    """Our decoder's products for a batch, the whole of it at once, counted on the meta device."""
    with torch.device("meta"):
        tokenizer = Tokenizer(config).eval().prepare()
        side = config.patch_nums[-1]
        f_hat = torch.empty(batch, config.z_channels, side, side)
    counter = _Products(itemsize)
    with torch.no_grad(), counter:
        tokenizer.pixels(f_hat)
    return counter.work


def floor(work: list[Work], rates: Rates, bytes_s: float) -> Floor:
    """The floor of some work, with a ceiling of operations for each kind and size of number."""
    times = [(one.flops / rates[one.conv, one.itemsize], one.bytes / bytes_s) for one in work]
    return Floor(
        flops=sum(one.flops for one in work),
        bytes=sum(one.bytes for one in work),
        compute_s=sum(compute for compute, _ in times),
        traffic_s=sum(traffic for _, traffic in times),
        seconds=sum(max(pair) for pair in times),
    )


def _linear(part: str, rows: int, c_in: int, c_out: int, itemsize: int) -> Work:
    moved = itemsize * (rows * (c_in + c_out) + c_in * c_out)
    return Work(part, 2 * rows * c_in * c_out, moved, itemsize)


class _Products(TorchDispatchMode):
    """Notes convolutions, matrix products and attention."""

    def __init__(self, itemsize: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.itemsize = itemsize
        self.work: list[Work] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is torch.ops.aten.convolution:
            self._note(args[0], args[1], out, 2 * out.numel() * args[1][0].numel(), conv=True)
        elif packet in (torch.ops.aten.bmm, torch.ops.aten.mm):
            self._note(args[0], args[1], out, 2 * out.numel() * args[0].shape[-1])
        elif packet is torch.ops.aten.addmm:
            self._note(args[1], args[2], out, 2 * out.numel() * args[1].shape[-1])
        elif "scaled_dot_product" in packet.__name__:
            queries, keys = args[0], args[1]
            flops = 4 * queries.numel() * keys.shape[-2]
            self._note(queries, torch.cat((keys, args[2])), queries, flops)
        return out

    def _note(self, x: Tensor, weight: Tensor, out: Tensor, flops: int, conv: bool = False) -> None:
        moved = self.itemsize * (x.numel() + weight.numel() + out.numel())
        self.work.append(Work("decoder", flops, moved, self.itemsize, conv))
