"""Image files to pixels: upright RGB, resized with an antialiasing filter, cut to size."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_KEEP = 4  # times the resolution
MAX_ASPECT = 4  # an image kept whole is cut to at most this many times its shorter side

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]; [R, R, 3] unless more is kept

Cut = Callable[[Pixels, int], Pixels]  # (stored image, R) -> uint8 [R, R, 3]


class BadImageError(Exception):
    """An image that cannot be used; the text says why and holds no path."""


def stored_side(resolution: int, keep: float) -> int:
    """Shorter side of a stored image, in pixels: VAR's ``round(1.125 * 256) = 288``."""
    return round(keep * resolution)


def read_image(path: Path, resolution: int, keep: float = 1.0) -> Pixels:
    """Read an image file as upright RGB and :func:`fit` it.

    Returns uint8 [R, R, 3]; with ``keep`` above 1 [H, W, 3].

    Raises:
        BadImageError: the file cannot be read as an image.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return np.asarray(fit(to_rgb(ImageOps.exif_transpose(image)), resolution, keep))
    except UnidentifiedImageError:
        raise BadImageError("not an image of a known format") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadImageError(text or type(error).__name__) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit grey is scaled to 8, transparency is laid on white."""
    if image.mode == "F":
        raise BadImageError("floating-point pixels: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, resolution: int, keep: float = 1.0) -> Image.Image:
    """The centre square of an image, resized (Lanczos, antialiased) to R x R.

    With ``keep`` above 1 the image stays whole, its shorter side resized to ``keep * R``, so that
    a reader can cut R x R from it at random. Of a longer side than four times the shorter one the
    middle is taken. Cutting is done while resizing: a long thin image needs no more memory.
    """
    width, height = image.size
    side = min(width, height)
    if keep == 1.0:
        if side == resolution:  # whole pixels: nothing is interpolated
            left, top = (width - side) // 2, (height - side) // 2
            return image.crop((left, top, left + side, top + side))
        return _resize(image, (side, side), (resolution, resolution))
    short = stored_side(resolution, keep)
    taken = (min(width, MAX_ASPECT * side), min(height, MAX_ASPECT * side))
    # the longer side is rounded down, as torchvision's Resize does it
    return _resize(image, taken, (short * taken[0] // side, short * taken[1] // side))


def _resize(image: Image.Image, taken: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """The middle of an image, ``taken`` pixels wide and high, resized to ``size``."""
    left, top = (image.width - taken[0]) / 2, (image.height - taken[1]) / 2
    box = (left, top, left + taken[0], top + taken[1])
    return image.resize(size, Image.Resampling.LANCZOS, box=box)


def centre(pixels: Pixels, resolution: int) -> Pixels:
    """The middle R x R of a stored image, rounded as torchvision's CenterCrop does it."""
    top, left = (round((side - resolution) / 2) for side in pixels.shape[:2])
    return pixels[top : top + resolution, left : left + resolution]


def read_png(png: bytes, side: int, resolution: int, *, verify: bool = False) -> Pixels:
    """A stored image.

    Args:
        png: its bytes.
        side: its shorter side; both sides, where it is the resolution.
        resolution: of the images as they are read.
        verify: :func:`verify_png` first.

    Returns:
        uint8 [H, W, 3].

    Raises:
        BadImageError: the bytes are damaged, or of another size.
    """
    if verify:
        verify_png(png)
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise BadImageError(f"damaged: {' '.join(str(error).split())[:80]}") from None
    if min(pixels.shape[:2]) != side or (side == resolution and max(pixels.shape[:2]) != side):
        raise BadImageError(f"not {side}x{side}")
    return pixels


def verify_png(png: bytes) -> None:
    """Compare the checksums within a PNG, which decoding alone does not look at.

    Raises:
        BadImageError: they differ, or the bytes are no PNG.
    """
    try:
        Image.open(io.BytesIO(png), formats=["PNG"]).verify()
    except Exception as error:  # as above
        raise BadImageError(f"damaged: {' '.join(str(error).split())[:80]}") from None
