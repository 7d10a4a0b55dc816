"""PNG bytes, and the gutters of a grid."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from srdd.images import GUTTER, GUTTER_GREY, grid, png_bytes
from srdd_platform.core.images import grid_png, to_png


def noise(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("encode", [to_png, png_bytes])
def test_png_keeps_pixels_and_channel_order_and_is_deterministic(
    encode: Callable[[Tensor], bytes],
) -> None:
    image = noise(1, 5)[0, :, :4]
    data = encode(image)
    assert data == encode(image.clone())
    with Image.open(io.BytesIO(data)) as read:
        assert read.format == "PNG"
        assert read.mode == "RGB"
        pixels = np.array(read)
    assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())


def test_a_grid_has_gutters_round_every_image() -> None:
    images = noise(3, 48)  # large enough to be shown as they are
    canvas = grid(images)
    step = 48 + GUTTER
    assert canvas.shape == (3, 2 * step + GUTTER, 2 * step + GUTTER)
    expected = torch.full_like(canvas, GUTTER_GREY)
    for i, (y, x) in enumerate([(0, 0), (0, 1), (1, 0)]):
        top, left = GUTTER + y * step, GUTTER + x * step
        expected[:, top : top + 48, left : left + 48] = images[i]
    assert torch.equal(canvas, expected)


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    images = noise(2, 16)
    canvas = grid(images)
    assert canvas.shape == (3, 3 * (16 + 2 * GUTTER), 3 * (2 * 16 + 3 * GUTTER))
    small = canvas[:, ::3, ::3]
    assert torch.equal(small.repeat_interleave(3, 1).repeat_interleave(3, 2), canvas)
    assert torch.equal(small[:, GUTTER : GUTTER + 16, GUTTER : GUTTER + 16], images[0])
    assert torch.equal(small[:, GUTTER : GUTTER + 16, 16 + 2 * GUTTER : -GUTTER], images[1])


@pytest.mark.parametrize(
    ("count", "lines", "columns"), [(1, 1, 1), (2, 1, 2), (10, 3, 4), (16, 4, 4), (40, 4, 10)]
)
def test_the_grid_s_shape(count: int, lines: int, columns: int) -> None:
    step = 48 + GUTTER
    assert grid(noise(count, 48)).shape[1:] == (lines * step + GUTTER, columns * step + GUTTER)


def test_columns_may_be_given() -> None:
    step = 48 + GUTTER
    assert grid(noise(3, 48), columns=1).shape[1:] == (3 * step + GUTTER, step + GUTTER)


def test_a_grid_on_disk_is_the_grid(tmp_path: Path) -> None:
    images = noise(4, 16)
    grid_png(images, tmp_path / "deep" / "grid.png")
    data = (tmp_path / "deep" / "grid.png").read_bytes()
    assert data == to_png(grid(images))
