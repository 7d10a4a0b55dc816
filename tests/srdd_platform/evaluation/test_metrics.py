"""Metrics: known values, torch-fidelity's own numbers, order on real images, refusals."""

import numpy as np
import pytest
import torch
from torch import Tensor

from srdd.errors import UserError
from srdd_platform.evaluation.extractors import Extractor, Features
from srdd_platform.evaluation.kid import class_bias
from srdd_platform.evaluation.metrics import (
    MIN_IMAGES,
    Reference,
    jackknife_error,
    measure,
    raw_kid,
)


def gaussian(n: int, dim: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) * scale + mean


def whitened(n: int, dim: int, seed: int) -> Tensor:
    """Points whose sample mean is 0 and sample covariance the identity, exactly."""
    points = gaussian(n, dim, seed).numpy()
    points -= points.mean(0)
    factor = np.linalg.cholesky(np.linalg.inv(np.cov(points, rowvar=False)))
    return torch.from_numpy(points @ factor)


def features(points: Tensor, classes: int = 4) -> Features:
    return Features(points.float(), points[:, :classes].float())


@pytest.fixture(scope="module")
def reference(extractor: Extractor, digits: dict[str, tuple[Tensor, Tensor]]) -> Reference:
    images, labels = digits["train"]
    return Reference(extractor(images), labels)


def test_a_set_has_no_distance_to_itself() -> None:
    points = gaussian(300, 8, seed=0, scale=3.0)
    assert Reference(features(points)).frechet(points) == pytest.approx(0, abs=1e-6)


def test_the_distance_of_two_gaussians_is_the_closed_form() -> None:
    """|m|^2 + sum (a_i - b_i)^2 for covariances that share their axes."""
    white, dim = whitened(400, 6, seed=1), 6
    a, b = torch.linspace(0.5, 3.0, dim).double(), torch.linspace(2.0, 0.25, dim).double()
    shift = torch.arange(dim).double() / 4
    turn = torch.linalg.qr(gaussian(dim, dim, seed=2))[0]  # not axis-parallel
    expected = float(shift.square().sum() + (a - b).square().sum())
    found = Reference(features((white * a) @ turn)).frechet((white * b + shift) @ turn)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_distance_is_symmetric_where_the_covariances_do_not_commute() -> None:
    x, y = gaussian(200, 5, 3) @ gaussian(5, 5, 4), gaussian(150, 5, 5) @ gaussian(5, 5, 6) + 1
    x, y = x.float(), y.float()
    there, back = Reference(features(x)).frechet(y), Reference(features(y)).frechet(x)
    assert there == pytest.approx(back, rel=1e-6)
    assert there > 1


@pytest.mark.parametrize("n", [500, 60])  # 60: fewer images than features
def test_ours_is_torch_fidelity_s(n: int) -> None:
    fake = features(gaussian(n, 80, 7, mean=0.1, scale=1.3))
    real = Reference(features(gaussian(700, 80, 8)))
    labels = torch.arange(n) % 4
    found = measure(fake, real, labels, accuracy=False)["fid"]
    assert real.frechet(fake.features_nD) == pytest.approx(found, rel=1e-6, abs=1e-6)


def test_digits_are_told_apart_in_the_right_order(
    extractor: Extractor, reference: Reference, digits: dict[str, tuple[Tensor, Tensor]]
) -> None:
    held_out, labels = digits["val"]
    generator = torch.Generator().manual_seed(0)

    def fid(images: Tensor) -> float:
        return reference.frechet(extractor(images).features_nD)

    faint = torch.randn(held_out.shape, generator=generator) * 24
    noisy = (held_out.float() + faint).round().clamp(0, 255).to(torch.uint8)
    shifted = held_out.roll(3, dims=3)
    train, train_labels = digits["train"]
    one = train[train_labels == 3]
    values = [fid(held_out), fid(noisy), fid(shifted), fid(one)]
    assert values == sorted(values), values
    assert values[1] > 1.5 * values[0]
    assert values[3] > 20 * values[0]
    assert len(held_out) == len(labels) == 360


def test_the_real_images_score_well(
    extractor: Extractor, reference: Reference, digits: dict[str, tuple[Tensor, Tensor]]
) -> None:
    images, labels = digits["val"]
    found = measure(extractor(images), reference, labels, accuracy=True)
    assert found.keys() == {
        "fid", "fid_se", "inception_score", "kid", "kid_raw", "precision", "recall", "accuracy",
    }  # fmt: skip
    assert found["accuracy"] > 0.9
    assert 5 < found["inception_score"] <= 10  # ten balanced classes
    assert found["precision"] > 0.8
    assert found["recall"] > 0.8
    assert abs(found["kid"]) < 0.05
    assert 0 < found["fid_se"] < found["fid"]


def test_the_standard_error_is_that_of_disjoint_draws() -> None:
    """Fifty draws of 250 from one population: their spread against the mean jackknife error."""
    real = Reference(features(gaussian(20_000, 6, seed=9)))
    draws = gaussian(50 * 250, 6, seed=10, mean=0.3, scale=1.2).split(250)
    labels = torch.arange(250) % 10
    values = np.array([real.frechet(draw) for draw in draws])
    errors = np.array([jackknife_error(real.left_out(draw, labels)) for draw in draws])
    assert 1 / 1.6 < errors.mean() / values.std(ddof=1) < 1.6


def test_the_blocks_of_the_standard_error_hold_every_class_alike() -> None:
    """Features that are the class alone: leaving out a balanced block changes nothing."""
    labels = torch.arange(200) % 10
    points = torch.nn.functional.one_hot(labels, 10).double()[:, :9]
    real = Reference(features(gaussian(500, 9, seed=11)))
    balanced = jackknife_error(real.left_out(points, labels))
    blind = jackknife_error(real.left_out(points, torch.zeros(200, dtype=torch.int64)))
    assert balanced < 0.02
    assert blind > 3 * balanced  # blocks i mod 10 are then one class each


def test_without_labels_the_blocks_of_the_standard_error_do_not_follow_the_order() -> None:
    """Images in turns, a class each: every tenth image would be one class."""
    labels = torch.arange(400) % 10
    points = gaussian(400, 9, seed=12)
    points[:, :9] += 5 * torch.nn.functional.one_hot(labels, 10)[:, :9]
    real = Reference(features(points))
    unknown = jackknife_error(real.left_out(points, None))
    in_turns = jackknife_error(real.left_out(points, torch.zeros(400)))
    assert unknown < in_turns / 2


def test_the_inception_score_knows_no_order_of_images() -> None:
    points = gaussian(400, 8, seed=12, scale=3.0)
    real = Reference(features(gaussian(400, 8, seed=13)))
    by_class = points[points[:, :4].argmax(1).argsort()]
    scores = [
        measure(features(x), real, torch.arange(400) % 4, accuracy=False)["inception_score"]
        for x in (points, by_class)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-9)
    assert scores[0] > 1.5


def test_the_inception_score_of_known_probabilities() -> None:
    """Sure and balanced over four classes: 4. The same for every image: 1."""
    n = 200
    sure = torch.nn.functional.one_hot(torch.arange(n) % 4, 4) * 100.0
    real = Reference(features(gaussian(n, 5, seed=14)))
    for logits, expected in ((sure, 4.0), (torch.zeros(n, 4), 1.0)):
        fake = Features(gaussian(n, 5, seed=15).float(), logits)
        found = measure(fake, real, torch.arange(n) % 4, accuracy=False)
        assert found["inception_score"] == pytest.approx(expected, rel=1e-6)


def test_accuracy_counts_the_classes_asked_for() -> None:
    n = 80
    labels = torch.arange(n) % 4
    wrong = labels.clone()
    wrong[:20] = (wrong[:20] + 1) % 4
    fake = Features(gaussian(n, 5, 16).float(), torch.nn.functional.one_hot(wrong, 4).float())
    real = Reference(features(gaussian(n, 5, seed=17)))
    assert measure(fake, real, labels, accuracy=True)["accuracy"] == 0.75
    assert "accuracy" not in measure(fake, real, labels, accuracy=False)


def test_metrics_are_the_same_each_time() -> None:
    fake, real = features(gaussian(300, 6, 18)), Reference(features(gaussian(300, 6, 19)))
    labels = torch.arange(300) % 4
    assert measure(fake, real, labels, accuracy=True) == measure(fake, real, labels, accuracy=True)


@pytest.mark.parametrize(("fakes", "reals"), [(MIN_IMAGES - 1, 200), (200, MIN_IMAGES - 1)])
def test_too_few_images_are_refused(fakes: int, reals: int) -> None:
    fake, real = features(gaussian(fakes, 5, 20)), Reference(features(gaussian(reals, 5, 21)))
    with pytest.raises(UserError, match=f"at least {MIN_IMAGES} images on both sides, got 49"):
        measure(fake, real, torch.zeros(fakes, dtype=torch.int64), accuracy=False)


def halves(
    labels_n: Tensor, generator: torch.Generator, *, by_class: bool
) -> tuple[Tensor, Tensor]:
    """Indices of a random half of the images, or of each class, and of the others."""
    order_n = torch.randperm(len(labels_n), generator=generator)
    if by_class:  # sorted by class, every other image of each
        order_n = order_n[labels_n[order_n].argsort(stable=True)]
        mixed = torch.randperm(len(order_n) // 2, generator=generator)
        return order_n[::2][mixed], order_n[1::2][mixed]
    return order_n[: len(order_n) // 2], order_n[len(order_n) // 2 :]


def test_kid_of_real_images_is_0_for_fixed_and_for_random_numbers_of_each_class(
    extractor: Extractor, digits: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """20 splits of the digits: KID where each class is halved, KID raw where no class is fixed."""
    images, labels = (torch.cat(parts) for parts in zip(*digits.values(), strict=True))
    features_nD = extractor(images).features_nD
    means, errors = {}, {}
    for name, by_class in (("fixed", True), ("random", False)):
        generator = torch.Generator().manual_seed(0)
        values = []
        for _ in range(20):
            parts = halves(labels, generator, by_class=by_class)
            raw = raw_kid(*(features_nD[part] for part in parts), subsets=10)
            biases = [class_bias(features_nD[part], labels[part]) for part in parts]
            values.append((raw, raw - sum(filter(None, biases))))
        columns = torch.tensor(values, dtype=torch.float64)
        for i, column in enumerate(("raw", "corrected")):
            means[name, column] = float(columns[:, i].mean())
            errors[name, column] = float(columns[:, i].std() / 20**0.5)
    z = {which: means[which] / errors[which] for which in means}
    assert abs(z["fixed", "corrected"]) < 3
    assert abs(z["random", "raw"]) < 3
    assert z["fixed", "raw"] < -4
    assert z["random", "corrected"] > 3  # nothing is fixed: nothing is to be subtracted


def test_without_labels_on_both_sides_there_is_kid_raw_alone() -> None:
    """A folder of images or an .npz of somebody else says nothing about classes."""
    points, labels = gaussian(120, 6, 30), torch.arange(120) % 4
    points[:, 0] += 3 * (labels == 0)
    real = features(gaussian(150, 6, 31))
    told = Reference(real, torch.arange(150) % 4)
    both = measure(features(points), told, labels, accuracy=True)
    assert both["kid"] > both["kid_raw"] + 1e-3
    for reference, given in ((told, None), (Reference(real), labels), (Reference(real), None)):
        found = measure(features(points), reference, given, accuracy=True)
        assert "kid" not in found
        assert ("accuracy" in found) == (given is not None)
        same = ("fid", "kid_raw", "precision", "recall", "inception_score")
        assert [found[name] for name in same] == [both[name] for name in same]
        assert found["fid_se"] > 0


def test_a_class_each_leaves_kid_out() -> None:
    """As many classes as images: nothing is known of the kernel within a class."""
    reference = Reference(features(gaussian(200, 6, 32)), torch.arange(200) % 60)
    found = measure(features(gaussian(60, 6, 33)), reference, torch.arange(60), accuracy=False)
    assert "kid" not in found
    assert "kid_raw" in found
