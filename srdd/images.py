"""Pixels between float and uint8, images side by side, and PNG without an image library."""

import math
import struct
import zlib

import torch
from torch import Tensor

GUTTER = 2  # pixels between images before enlarging
GUTTER_GREY = 128
SMALLEST_SIDE = 48  # a grid's images are enlarged to at least this


def to_float(images: Tensor) -> Tensor:
    """uint8 [B, 3, R, R] -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[B, 3, R, R] in [0, 1] -> uint8, rounded half up.

    Raises:
        FloatingPointError: a pixel is not finite (casting it would give a plausible value).
    """
    if not torch.isfinite(images).all():
        raise FloatingPointError("an image has pixels that are not finite")
    return images.clamp(0, 1).mul(255).add(0.5).floor().to(torch.uint8)


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


def png_bytes(image: Tensor) -> bytes:
    """One uint8 [3, h, w] image as PNG (W3C's specification: colour type 2, no filter)."""
    height, width = image.shape[1:]
    rows = image.permute(1, 2, 0).contiguous().cpu().numpy()
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
