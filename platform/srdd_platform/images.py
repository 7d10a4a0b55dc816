"""Pixels: from floats to uint8, PNG bytes, and grids with gutters."""

import io
import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from srdd_platform.files import write_bytes

GUTTER = 2  # pixels between images before enlarging
GUTTER_GREY = 128
SMALLEST_SIDE = 48  # a grid's images are enlarged to at least this


def to_uint8(images: Tensor) -> Tensor:
    """[B, 3, R, R] in [0, 1] -> uint8, rounded half up.

    Raises:
        FloatingPointError: a pixel is not finite (casting it would give a plausible value).
    """
    if not torch.isfinite(images).all():
        raise FloatingPointError("an image has pixels that are not finite")
    return images.clamp(0, 1).mul(255).add(0.5).floor().to(torch.uint8)


def to_png(image: Tensor) -> bytes:
    """One uint8 [3, h, w] image as PNG bytes, the same for equal pixels."""
    buffer = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Images side by side with gutters: uint8 [n, 3, R, R] -> [3, H, W].

    Small images are enlarged by a whole factor, so that a person can see them.
    """
    count, _, side, _ = images.shape
    columns = columns or min(count, 10 if count >= 20 else math.ceil(math.sqrt(count)))
    lines = math.ceil(count / columns)
    step = side + GUTTER
    canvas = torch.full(
        (3, lines * step + GUTTER, columns * step + GUTTER), GUTTER_GREY, dtype=torch.uint8
    )
    for i, image in enumerate(images):
        y, x = GUTTER + (i // columns) * step, GUTTER + (i % columns) * step
        canvas[:, y : y + side, x : x + side] = image
    factor = max(1, math.ceil(SMALLEST_SIDE / side))
    return canvas.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def grid_png(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write a grid of uint8 images atomically."""
    write_bytes(path, to_png(grid(images, columns)))
