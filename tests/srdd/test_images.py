"""Pixels between float and uint8."""

import pytest
import torch

from srdd.images import to_float, to_uint8


def pixel(value: float) -> int:
    return int(to_uint8(torch.full((1, 3, 1, 1), value, dtype=torch.float64))[0, 0, 0, 0])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0),
        (1.0, 255),
        (0.5 / 255, 1),  # half goes up, not to the even neighbour
        (2.5 / 255, 3),
        (0.499 / 255, 0),
        (254.5 / 255, 255),
        (254.49 / 255, 254),
        (-0.3, 0),
        (1.7, 255),  # a cast alone would wrap round
    ],
)
def test_rounding_is_half_up_and_clamped(value: float, expected: int) -> None:
    assert pixel(value) == expected


def test_every_level_survives() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(levels.float() / 255), levels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_pixels_that_are_not_finite_are_refused(value: float) -> None:
    images = torch.rand(2, 3, 4, 4)
    images[1, 2, 3, 0] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        to_uint8(images)


def test_the_decoders_range_is_rounded_and_clamped() -> None:
    values = torch.tensor([-2.0, -1.0, -0.99609, 0.0, 0.9999, 1.5]).view(1, 1, 1, 6)
    assert to_uint8((values + 1) / 2).flatten().tolist() == [0, 0, 0, 128, 255, 255]


def test_floats_go_from_minus_one_to_one_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    floats = to_float(levels)
    assert floats.flatten()[[0, 255]].tolist() == [-1.0, 1.0]
    assert torch.equal(to_uint8((floats + 1) / 2), levels)
