"""Images of any generator, made to be judged, and what making them costs."""

import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srdd.devices import find_dtype
from srdd.generator import Generator, SampleResult, sample
from srdd.images import to_uint8
from srdd.load import load_pipeline
from srdd.rng import image_seeds
from srdd_platform.core.images import grid_png
from srdd_platform.evaluation.protocol import EvaluationConfig

LATENCY_RUNS = 5
GRID_IMAGES = 40  # of a set that a grid shows
COSTS = ("nfe", "gflops_per_image", "latency_ms", "images_per_s", "peak_memory_mb")  # of a row

Load = Callable[[str | Path], Generator[Any]]
Batch = tuple[Tensor, Tensor | None]  # images uint8 [b, 3, R, R], and their classes int64 [b]


def load_generator(
    source: str | Path, evaluation: EvaluationConfig, load: Load = load_pipeline
) -> Generator[Any]:
    """A model on the device and in the dtype of an evaluation.

    Raises:
        UserError: as :func:`srdd.load.load_pipeline`, or what ``load`` raises.
    """
    return load(source).to(evaluation.device, find_dtype(evaluation.dtype))


def sample_batches(
    generator: Generator[Any], config: Any, n: int, seed: int, batch_size: int
) -> Iterator[tuple[Tensor, SampleResult]]:
    """Class-balanced samples in batches: labels and results."""
    labels = torch.arange(n) % len(generator.card.class_names)
    seeds = image_seeds(seed, 0, n)
    for begin in range(0, n, batch_size):
        rows = slice(begin, begin + batch_size)
        yield labels[rows], sample(generator, labels[rows], config, seeds[rows])


class Samples:
    """Class-balanced samples of a generator, made while they are iterated over, and their cost.

    Args:
        generator: on its device.
        config: its sampler's settings.
        n: images.
        seed: of the first image; the others follow from it.
        batch_size: images made at once.
    """

    def __init__(
        self, generator: Generator[Any], config: Any, *, n: int, seed: int, batch_size: int
    ) -> None:
        self._generator, self._config = generator, config
        self._n, self._seed, self._batch_size = n, seed, batch_size
        self.cost: dict[str, float] = {}
        """The columns of a row that hold costs; there once the last batch was made."""

    def __iter__(self) -> Iterator[Batch]:
        """Images uint8 on the CPU, and the classes asked for; first measures one image's latency.

        The time and memory that the caller takes between two batches do not count.

        Raises:
            FloatingPointError: the generator gave values that are not finite.
        """
        latency = _latency_ms(self._generator, self._config)
        device = self._generator.device
        batches = sample_batches(
            self._generator, self._config, self._n, self._seed, self._batch_size
        )
        seconds = peak = 0.0
        nfe, gflops = [], []
        while True:
            _reset_peak(device)
            started = time.perf_counter()
            made = next(batches, None)
            if made is None:
                break
            labels, result = made
            images = to_uint8(result.images).cpu()
            nfe.append(result.nfe.double().cpu())
            gflops.append(result.gflops.cpu())
            seconds += time.perf_counter() - started
            peak = max(peak, _peak_mb(device))
            yield images, labels
        self.cost = {
            "nfe": float(torch.cat(nfe).mean()),
            "gflops_per_image": float(torch.cat(gflops).mean()),
            "latency_ms": latency,
            "images_per_s": self._n / seconds,
            "peak_memory_mb": peak,
        }


def with_grid(batches: Iterable[Batch], path: Path | None) -> Iterator[Batch]:
    """Pass batches on; after the last, write a grid of the first images to ``path``, if given."""
    first: list[Tensor] = []
    wanted = 0 if path is None else GRID_IMAGES
    for images, labels in batches:
        if wanted > 0:
            first.append(images[:wanted].clone())  # so that the rest of the batch can be freed
            wanted -= len(first[-1])
        yield images, labels
    if path is not None and first:
        grid_png(torch.cat(first), path)


def _latency_ms(generator: Generator[Any], config: Any) -> float:
    """Milliseconds for one image, decoder included: the median after a warm-up."""
    times = []
    for _ in range(LATENCY_RUNS + 1):
        started = time.perf_counter()
        sample(generator, torch.zeros(1, dtype=torch.int64), config, [0]).images.cpu()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def _reset_peak(device: torch.device) -> None:
    """Forget the peak memory so far, where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass


def _peak_mb(device: torch.device) -> float:
    """Peak memory in MB since the reset: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 / 1e6 for x in lines if x.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
