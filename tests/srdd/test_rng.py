import math

import numpy as np
import pytest
import torch

from srdd.rng import hash_counters, image_seed, image_seeds, mix, uniform

WORD = (1 << 64) - 1


def _mix(x: int) -> int:
    """SplitMix64's finaliser on Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def _hash(*counters: int) -> int:
    bits = 0
    for counter in counters:
        bits = _mix(((bits ^ (counter & WORD)) + 0x9E3779B97F4A7C15) & WORD)
    return bits


def test_the_finaliser_is_splitmix64() -> None:
    """The first outputs for seed 0, as published with the generator."""
    states = [(i * 0x9E3779B97F4A7C15) & WORD for i in (1, 2, 3)]
    signed = [x - (1 << 64) if x >> 63 else x for x in states]
    found = [int(x) & WORD for x in mix(torch.tensor(signed))]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize(
    "counters", [(0,), (1, 2, 3), (-1,), (2**53 - 1, 0x5A, 3, 0, 15), (-(2**63), 2**63 - 1)]
)
def test_hashes_equal_those_on_python_integers(counters: tuple[int, ...]) -> None:
    assert int(hash_counters(*counters)) & WORD == _hash(*counters)
    tensors = [torch.tensor([counter]) for counter in counters]
    assert int(hash_counters(*tensors)) & WORD == _hash(*counters)


def test_golden_hashes() -> None:
    """Written out: whoever changes the generator changes every image ever drawn."""
    assert int(hash_counters(0)) & WORD == 0xE220A8397B1DCDAF
    assert int(hash_counters(1, 2, 3)) & WORD == 0xD0734750FDE362B3
    assert float(uniform(7, 0x5A, 2, 1, 8)) == 0.03395475307479501
    assert [image_seed(42, i) for i in range(4)] == [
        42,
        8560785262482024,
        4022505963573781,
        8807030335946528,
    ]


def test_counters_broadcast() -> None:
    rows, columns = torch.arange(3)[:, None], torch.arange(5)
    bits = hash_counters(rows, 9, columns)
    assert bits.shape == (3, 5)
    assert int(bits[2, 4]) == int(hash_counters(2, 9, 4))
    assert len(bits.unique()) == 15


def test_uniforms_are_uniform() -> None:
    n = 1 << 16
    u = uniform(torch.arange(n), 3)
    assert u.dtype == torch.float64
    assert 0 <= u.min()
    assert u.max() < 1
    assert float(u.mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * n))
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.02)
    grid = torch.arange(1, n + 1) / n
    kolmogorov = float((u.sort().values - grid).abs().max())
    assert kolmogorov < 1.95 / math.sqrt(n)  # p = 0.001
    assert torch.equal(u * 2**32, (u * 2**32).floor())  # 32 bits
    assert len(u.unique()) > n - 10


@pytest.mark.parametrize("place", range(4))
def test_neighbouring_counters_are_uncorrelated(place: int) -> None:
    n = 1 << 14
    counters: list[torch.Tensor | int] = [5, 0x5A, 1, 2]
    counters[place] = torch.arange(n)
    u = uniform(*counters).numpy()
    for lag in (1, 2, 16):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / math.sqrt(n)


def test_each_bit_of_a_counter_turns_half_of_the_bits() -> None:
    base = torch.arange(256)
    for bit in (0, 7, 31, 62):
        turned = hash_counters(base, 1) ^ hash_counters(base ^ (1 << bit), 1)
        ones = sum(bin(int(x) & WORD).count("1") for x in turned) / 256
        assert ones == pytest.approx(32, abs=1.5)


def test_counters_are_told_apart_by_their_place() -> None:
    assert int(hash_counters(1, 2)) != int(hash_counters(2, 1))
    assert int(hash_counters(1)) != int(hash_counters(1, 0))


def test_image_zero_has_the_jobs_seed() -> None:
    for job in (0, 1, 2**53 - 1):
        assert image_seed(job, 0) == job


def test_image_seeds_fit_into_53_bits_and_differ() -> None:
    seeds = image_seeds(3, 0, 2000)
    assert seeds.dtype == torch.int64
    assert len(seeds.unique()) == 2000
    assert 0 <= seeds.min()
    assert 2**52 < seeds.max() < 2**53
    assert [int(seed) for seed in seeds[:5]] == [image_seed(3, i) for i in range(5)]
    assert torch.equal(image_seeds(3, 100, 110), seeds[100:110])
    assert not set(seeds.tolist()) & set(image_seeds(4, 0, 2000).tolist())
