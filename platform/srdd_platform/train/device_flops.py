"""The most floating-point operations a second that a device does, against which MFU is taken."""

import time
from dataclasses import dataclass

import torch

from srdd.nn.linear import RowLinear
from srdd.train.config import Precision

# Dense peaks in TFLOPS without sparsity, from NVIDIA's datasheets and architecture whitepapers:
# bfloat16 on tensor cores, float32 outside them. The first name that occurs in the device's wins.
_CUDA: tuple[tuple[str, float, float], ...] = (
    ("H100 PCIe", 756, 51),
    ("H100 NVL", 835, 60),
    ("H100", 989, 67),  # SXM
    ("H200", 989, 67),
    ("A100", 312, 19.5),
    ("A40", 149.7, 37.4),
    ("A30", 165, 10.3),
    ("A10G", 70, 31.2),  # NVIDIA gives half the A10's tensor rate
    ("A10", 125, 31.2),
    ("L40S", 362, 91.6),
    ("L4", 121, 30.3),
    ("RTX 4090", 165.2, 82.6),
    ("RTX 3090", 71, 35.6),
)
_SIDES = (512, 1024)  # of the products that measure a CPU
_SECONDS = 0.15  # for which each is repeated; the best counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """A device's peak, and how it is known."""

    flops: float  # a second
    source: str


def device_peak(device: torch.device, precision: Precision) -> Peak | None:
    """The peak of a device in a precision; None for a GPU that is not known.

    A GPU's is looked up by its name. A CPU's is measured: the best of some matrix products with
    the threads that this process has.
    """
    if device.type == "cuda":
        return find_peak(torch.cuda.get_device_name(device), precision)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return _measured(dtype)


def find_peak(name: str, precision: Precision) -> Peak | None:
    """The peak of a GPU by its name; None where it is not known."""
    for part, half, single in _CUDA:
        if part.lower() in name.lower():
            tflops = half if precision == "bfloat16" else single
            return Peak(flops=tflops * 1e12, source=f"{name}, {precision} peak by its datasheet")
    return None


@torch.no_grad()
def _measured(dtype: torch.dtype) -> Peak:
    best = max(_rate(side, dtype) for side in _SIDES)
    threads, name = torch.get_num_threads(), str(dtype).removeprefix("torch.")
    source = f"{name} products measured on {threads} CPU thread{'s' * (threads != 1)}"
    return Peak(flops=best, source=source)


def _rate(side: int, dtype: torch.dtype) -> float:
    """Floating-point operations a second in the transformer's own product of a side."""
    with torch.random.fork_rng(devices=[]):
        layer = RowLinear(side, side, bias=False).to(dtype)
    x = torch.ones(side, side, dtype=dtype)
    layer(x)
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        start = time.perf_counter()
        layer(x)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
