"""PNG bytes and files; what needs no image library is in :mod:`srdd.images`."""

import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from srdd.images import grid
from srdd_platform.core.files import write_bytes


def to_png(image: Tensor) -> bytes:
    """One uint8 [3, h, w] image as PNG bytes, the same for equal pixels."""
    buffer = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def grid_png(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write a grid of uint8 images atomically."""
    write_bytes(path, to_png(grid(images, columns)))
