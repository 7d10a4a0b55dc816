"""Pixels: from floats to uint8, PNG bytes, and grids with gutters."""

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from srdd.images import grid
from srdd_platform.core.files import write_bytes


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


def grid_png(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write a grid of uint8 images atomically."""
    write_bytes(path, to_png(grid(images, columns)))
