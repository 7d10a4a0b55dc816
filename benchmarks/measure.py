"""Time of several arms, interleaved in one run, and their paired ratios."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """One arm's repeats, in the order they were run."""

    seconds: list[float]  # process CPU time on a CPU, between two events on a GPU
    wall: list[float]
    warm_up_s: float  # wall time of the first call


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """The spread of some values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def row(self) -> list[float]:
        """As JSON: median, first and third quartile."""
        return [self.median, self.low, self.high]


def clock(call: Call, device: torch.device) -> tuple[float, float]:
    """Seconds of one call: CPU time or device time, and wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wall = time.perf_counter()
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(stop) / 1e3, time.perf_counter() - wall
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def interleave(arms: dict[str, Call], device: torch.device, repeats: int) -> dict[str, Timing]:
    """Time every arm ``repeats`` times, all arms in turn: see :func:`rounds`."""
    *_, timings = rounds(arms, device, repeats)
    return timings


def rounds(
    arms: dict[str, Call], device: torch.device, repeats: int
) -> Iterator[dict[str, Timing]]:
    """Time all arms in turn, ``repeats`` times; gives what was read so far after each round.

    Each arm's first call is its warm-up and reported apart, a second one is thrown away on a GPU.
    The order turns by one arm a round, so that a drift of the machine hits all alike.
    """
    names = list(arms)
    timings = {name: Timing([], [], clock(arms[name], device)[1]) for name in names}
    if device.type == "cuda":
        for name in names:
            clock(arms[name], device)
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            spent, wall = clock(arms[name], device)
            timings[name].seconds.append(spent)
            timings[name].wall.append(wall)
        yield timings


def ratios(reference: Timing, arm: Timing) -> Spread:
    """How many times faster than the reference, round by round."""
    pairs = zip(reference.seconds, arm.seconds, strict=True)
    return Spread.of([a / b for a, b in pairs])


def timing_row(timing: Timing, reference: Timing | None) -> dict[str, Any]:
    """A timing as JSON."""
    return {
        "seconds": Spread.of(timing.seconds).row(),
        "wall_seconds": Spread.of(timing.wall).row(),
        "warm_up_s": timing.warm_up_s,
        "speedup": ratios(reference, timing).row() if reference is not None else None,
    }
