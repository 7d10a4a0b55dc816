"""Images drawn to be judged, and what drawing them costs."""

import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srdd.generator import SampleResult, sample
from srdd.rng import image_seeds
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline
from srdd_platform.core.images import to_uint8

LATENCY_RUNS = 5
GRID_IMAGES = 40  # of a set that a grid shows


@dataclass(frozen=True, slots=True)
class Drawn:
    """Class-balanced samples."""

    images: Tensor  # uint8 [n, 3, R, R]
    labels: Tensor  # int64 [n]
    cost: dict[str, float]  # the columns of a row that hold costs


def draw_batches(
    pipeline: Pipeline, config: SamplerConfig, n: int, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, SampleResult]]:
    """Class-balanced samples in batches: labels and results."""
    labels = torch.arange(n) % len(pipeline.class_names)
    seeds = image_seeds(seed, 0, n)
    for begin in range(0, n, batch_size):
        rows = slice(begin, begin + batch_size)
        yield labels[rows], sample(pipeline, labels[rows], config, seeds[rows])


def draw_timed(
    pipeline: Pipeline, config: SamplerConfig, n: int, seed: int, batch_size: int, device: str
) -> Drawn:
    """Draw ``n`` images and measure what that costs, after the latency of one."""
    latency = _latency_ms(pipeline, config)
    _reset_peak(device)
    started = time.perf_counter()
    images, labels, nfe, gflops = [], [], [], []
    for labels_B, result in draw_batches(pipeline, config, n, seed, batch_size):
        images.append(to_uint8(result.images).cpu())
        labels.append(labels_B)
        nfe.append(result.nfe.double().cpu())
        gflops.append(result.gflops.cpu())
    seconds = time.perf_counter() - started
    cost = {
        "nfe": float(torch.cat(nfe).mean()),
        "gflops_per_image": float(torch.cat(gflops).mean()),
        "latency_ms": latency,
        "images_per_s": n / seconds,
        "peak_memory_mb": _peak_mb(device),
    }
    return Drawn(torch.cat(images), torch.cat(labels), cost)


def _latency_ms(pipeline: Pipeline, config: SamplerConfig) -> float:
    """Milliseconds for one image, decoder included: the median after a warm-up."""
    times = []
    for _ in range(LATENCY_RUNS + 1):
        started = time.perf_counter()
        sample(pipeline, torch.zeros(1, dtype=torch.int64), config, [0]).images.cpu()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def _reset_peak(device: str) -> None:
    """Forget the peak memory so far, where the system lets us."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass


def _peak_mb(device: str) -> float:
    """Peak memory in MB since the reset: of the device, or of this process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 / 1e6 for x in lines if x.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
