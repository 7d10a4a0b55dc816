"""KID of images with fixed numbers of each class: its bias, exactly and on real features."""

from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srdd_platform.evaluation.kid import ROWS, class_bias

Array = npt.NDArray[np.float64]


def kernel(x: Array) -> Array:
    return np.asarray((x @ x.T / x.shape[1] + 1) ** 3)


def pairs_mean(values: Array) -> float:
    """The mean over pairs of different images, as KID has it for either set."""
    n = len(values)
    return float((values.sum() - np.trace(values)) / (n * (n - 1)))


def points(n: int, dim: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(n, dim)).round(2)


def bias(x: Array, labels: Array) -> float:
    found = class_bias(torch.from_numpy(x).float(), torch.from_numpy(labels).long())
    assert found is not None
    return found


def clusters(labels: Array, spread: float, seed: int = 0) -> Array:
    """Points around a centre a class."""
    centres = points(int(labels.max()) + 1, 6, seed=seed + 100) * spread
    return centres[labels.astype(int)] + points(len(labels), 6, seed=seed)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([(2, 3), (3, 4), (2, 2)]), min_size=2, max_size=3), st.integers(0))
def test_over_all_draws_of_fixed_numbers_the_bias_is_exact(
    classes: list[tuple[int, int]], seed: int
) -> None:
    """Each class gives m of its M images, in every way there is, unequal numbers included."""
    labels = np.repeat(np.arange(len(classes)), [have for _, have in classes])
    x = clusters(labels, spread=2.0, seed=seed % 2**32)
    k = kernel(x)
    numbers = np.array([take for take, _ in classes])
    shares = numbers / numbers.sum()
    target = 0.0  # two independent images of classes with these shares
    for a, b in product(range(len(classes)), repeat=2):
        block = k[np.ix_(labels == a, labels == b)]
        target += shares[a] * shares[b] * (pairs_mean(block) if a == b else block.mean())
    draws = [
        np.concatenate(parts)
        for parts in product(
            *(combinations(np.flatnonzero(labels == c), m) for c, (m, _) in enumerate(classes))
        )
    ]
    terms = [pairs_mean(k[np.ix_(draw, draw)]) for draw in draws]
    biases = [bias(x[draw], labels[draw]) for draw in draws]
    assert np.mean(biases) == pytest.approx(np.mean(terms) - target, rel=1e-4, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_for_equal_classes_it_is_the_closed_form(classes: int, each: int, seed: int) -> None:
    n = classes * each
    labels = np.arange(n) % classes
    x = clusters(labels, spread=1.5, seed=seed)
    k, same = kernel(x), labels[:, None] == labels
    within = (k[same].sum() - np.trace(k)) / (n * (each - 1))
    gap = within - k[~same].mean()
    expected = -gap * (1 / classes - (n / classes - 1) / (n - 1))
    assert bias(x, labels) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_classes_that_differ_make_it_negative_and_labels_without_meaning_do_not() -> None:
    """Shuffled labels, as of a model that ignores them: above and below 0 alike."""
    labels = np.arange(120) % 6
    x = clusters(labels, spread=2.0)
    told = bias(x, labels)
    rng = np.random.default_rng(1)
    shuffled = np.array([bias(x, rng.permutation(labels)) for _ in range(40)])
    assert told < -0.1
    assert abs(shuffled.mean()) < 3 * shuffled.std() / np.sqrt(40)
    assert abs(shuffled).max() < abs(told) / 5


def test_rows_of_the_kernel_may_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.sort(np.arange(90) % 3)
    x = clusters(labels, spread=1.0)
    whole = bias(x, labels)
    monkeypatch.setattr("srdd_platform.evaluation.kid.ROWS", 7)
    assert bias(x, labels) == pytest.approx(whole, rel=1e-6)
    assert ROWS > 90


def test_one_class_has_no_bias() -> None:
    """Folders of faces, unconditional models: all images are independent draws."""
    assert bias(points(40, 5, seed=0), np.zeros(40)) == 0.0


def test_classes_of_one_image_each_leave_it_unknown() -> None:
    """1,000 images of 1,000 classes."""
    x = torch.from_numpy(points(30, 5, seed=0)).float()
    assert class_bias(x, torch.arange(30)) is None


def test_a_class_of_one_image_counts_as_the_others_do() -> None:
    """30 images of 20 classes, as the number of images is seldom a multiple: 10 have no pair."""
    labels = np.arange(30) % 20
    x = clusters(labels, spread=2.0, seed=3)
    k, same = kernel(x), labels[:, None] == labels
    pair = (k[same].sum() - np.trace(k)) / 20  # 10 classes of two images, a pair in either order
    share = np.array([2] * 10 + [1] * 10) / 30
    expected = (k[~same].sum() / 30**2 - (share * (1 - share)).sum() * pair) / 29
    assert bias(x, labels) == pytest.approx(expected, rel=1e-4)


def test_the_order_of_images_and_the_names_of_classes_do_not_matter() -> None:
    labels = np.arange(60) % 4
    x = clusters(labels, spread=1.0)
    order = np.random.default_rng(2).permutation(60)
    assert bias(x[order], 7 * labels[order] + 3) == pytest.approx(bias(x, labels), rel=1e-5)
