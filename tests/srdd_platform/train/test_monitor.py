from collections.abc import Iterator

import pytest
import torch

from srdd.train.task import Batch
from srdd_platform.train.device_flops import device_peak, find_peak
from srdd_platform.train.monitor import Meter

BATCH = Batch(torch.zeros(2), torch.zeros(2), torch.zeros(2), 8)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def slow_batches(clock: Clock, seconds: float) -> Iterator[Batch]:
    while True:
        clock.now += seconds
        yield BATCH


def test_images_a_second_leave_out_the_first_update_and_what_is_done_apart() -> None:
    clock = Clock()
    meter = Meter(batch_size=8, clock=clock)
    stream = meter.stream(slow_batches(clock, 0.5))

    def wait() -> None:
        clock.now += 1000

    next(stream)
    clock.now += 60  # the first update: compilation, first allocations
    assert meter.read() == {}
    meter.apart(wait)()
    for _ in range(4):
        next(stream)
        clock.now += 1.5  # an update
    meter.apart(wait)()
    assert meter.read() == {"images_per_s": 4 * 8 / 8.0, "data_wait": 4 * 0.5 / 8.0}
    next(stream)
    clock.now += 3.5
    assert meter.read() == {"images_per_s": 8 / 4.0, "data_wait": 0.5 / 4.0}


def test_time_apart_counts_where_it_ends_in_an_error() -> None:
    clock = Clock()
    meter = Meter(batch_size=1, clock=clock)
    stream = meter.stream(slow_batches(clock, 0.0))

    def fail() -> None:
        clock.now += 10
        raise OSError("full")

    next(stream)
    next(stream)
    clock.now += 2
    with pytest.raises(OSError, match="full"):
        meter.apart(fail)()
    assert meter.read()["images_per_s"] == pytest.approx(1 / 2)


def test_the_stream_ends_where_the_batches_do() -> None:
    meter = Meter(batch_size=8)
    assert list(meter.stream(iter([BATCH, BATCH]))) == [BATCH, BATCH]


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5),
        ("NVIDIA A10G", "bfloat16", 70),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA L40S", "float32", 91.6),
        ("NVIDIA L4", "bfloat16", 121),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, precision: str, tflops: float) -> None:
    peak = find_peak(name, precision)  # type: ignore[arg-type]
    assert peak is not None
    assert peak.flops == tflops * 1e12
    assert name in peak.source


def test_a_gpu_that_is_not_known_has_no_peak() -> None:
    assert find_peak("NVIDIA Quadro 600", "bfloat16") is None


def test_a_cpu_is_measured_and_says_so_without_drawing_random_numbers() -> None:
    state = torch.random.get_rng_state()
    peak = device_peak(torch.device("cpu"), "float32")
    assert peak is not None
    assert 1e8 < peak.flops < 1e15
    assert peak.source == "float32 products measured on 1 CPU thread"
    assert torch.equal(torch.random.get_rng_state(), state)
