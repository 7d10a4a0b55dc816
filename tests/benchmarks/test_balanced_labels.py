"""The benchmark of fixed classes: what its tables say of features whose answer is known."""

import torch

from benchmarks.balanced_labels import Drawn, estimators, kid_of_halves
from srdd_platform.evaluation.extractors import Features
from srdd_platform.evaluation.metrics import Reference


def clusters(n: int, seed: int) -> Drawn:
    """Images whose features are their class's centre and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 5
    centres = 3 * torch.eye(5, 6)
    points = centres[labels] + torch.randn(n, 6, generator=generator)
    return Drawn(Features(points, points[:, :5]), labels, gflops=1.0)


def columns(table: str) -> dict[str, list[float]]:
    """The numbers of each line, a standard error beside its mean."""
    lines = [line.strip("| ").split("|") for line in table.splitlines()[2:]]
    return {
        name.strip(): [float(x) for cell in cells for x in cell.split("±") if x.strip()]
        for name, *cells in lines
    }


def test_halves_of_each_class_need_the_correction_and_random_ones_do_not() -> None:
    pool = clusters(300, seed=0)
    found = columns(kid_of_halves(pool.features.features_nD, pool.labels, splits=4))
    raw, raw_error, _, kid, _, _ = found["halves of each class"]
    assert raw < -5 * raw_error
    assert abs(kid) < -raw / 3
    raw, _, _, kid, _, _ = found["halves at random"]
    assert kid > raw + 0.05


def test_fixed_classes_lower_the_spread_of_fid() -> None:
    real = clusters(400, seed=1)
    found = columns(estimators(clusters(300, seed=2), Reference(real.features, real.labels), n=60))
    fixed, _, fixed_spread, random, _, random_spread = found["fid"]
    assert fixed < random
    assert fixed_spread < random_spread
