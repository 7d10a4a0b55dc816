"""Image files to pixels: upright RGB, resized with an antialiasing filter, cut to size.

What stops the pixels from being read is damage; what else a file holds (text, profiles, EXIF) is
not looked at, apart from the orientation.
"""

import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from PIL import Image, UnidentifiedImageError

from srdd_platform.data.formats import (
    ORIENTATION,
    PNG,
    is_heif,
    orientation,
    png_pixels,
    reads_heif,
    why_unreadable,
)
from srdd_platform.data.modes import BadImageError, to_rgb

MAX_KEEP = 4  # times the resolution
MAX_ASPECT = 4  # an image kept whole is cut to at most this many times its shorter side
LARGE = 50_000_000  # pixels: no two such images are decoded at the same time
HUGE = 178_956_970  # pixels: a JPEG is decoded at a fraction of its size

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]; [R, R, 3] unless more is kept

Cut = Callable[[Pixels, int], Pixels]  # (stored image, R) -> uint8 [R, R, 3]

_one_large = threading.Lock()
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
logging.getLogger("PIL").addHandler(logging.NullHandler())  # its messages name no file


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was read."""

    pixels: Pixels
    first_of_many: bool = False  # of an animation, or of pages


@contextmanager
def own_files() -> Iterator[None]:
    """While this holds, Pillow reads images of any size, and its warnings are not shown.

    Its limit guards against strangers' files; a person's own may be large, and the memory there
    is bounds them. The warnings name no file: what matters of them comes as an error.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def stored_side(resolution: int, keep: float) -> int:
    """Shorter side of a stored image, in pixels: VAR's ``round(1.125 * 256) = 288``."""
    return round(keep * resolution)


def read_image(path: Path, resolution: int, keep: float = 1.0) -> Pixels:
    """The pixels of :func:`load_image`: uint8 [R, R, 3]; with ``keep`` above 1 [H, W, 3]."""
    return load_image(path, resolution, keep).pixels


def load_image(path: Path, resolution: int, keep: float = 1.0) -> Loaded:
    """Read an image file as upright RGB and :func:`fit` it. Of several images the first is taken.

    Raises:
        BadImageError: the file cannot be read as an image.
    """
    data = b""
    try:
        data = path.read_bytes()
        try:
            return _loaded(data, resolution, keep)
        except (BadImageError, MemoryError):
            raise
        except Exception:  # Pillow raises nearly anything, in a PNG for what is beside the pixels
            if not data.startswith(PNG):
                raise
            return _loaded(png_pixels(data), resolution, keep)
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImageError(why_unreadable(data)) from None
    except Exception as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadImageError(text or type(error).__name__) from None


def _loaded(data: bytes, resolution: int, keep: float) -> Loaded:
    if is_heif(data):
        reads_heif()
    image = Image.open(io.BytesIO(data))
    num = image.width * image.height
    with _one_large if num > LARGE else nullcontext():
        if num > HUGE:
            image.draft(None, (4 * stored_side(resolution, keep),) * 2)  # JPEG alone
        if num > LARGE:
            _check_memory(image)
        image.load()
        pixels = np.asarray(fit(to_rgb(_upright(image)), resolution, keep))
    return Loaded(pixels, _first_of_many(image))


def _upright(image: Image.Image) -> Image.Image:
    """A loaded image, turned as its EXIF says; without EXIF that can be read it stays as it is."""
    try:
        value = image.getexif().get(ORIENTATION) or orientation(image.info.get("exif", b""))
        turn = _TURNS.get(value or 1)
    except Exception:  # Pillow raises many kinds on damaged EXIF
        turn = None
    return image if turn is None else image.transpose(turn)


def _first_of_many(image: Image.Image) -> bool:
    if image.format == "MPO":  # a photo, whose other images are a camera's own (depth, preview)
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # there is a second one, and it is damaged
        return True


def _check_memory(image: Image.Image) -> None:
    """Refuse an image that would not fit into memory.

    Raises:
        BadImageError: it says how much it takes, and how much is free.
    """
    own = 1 if image.mode in ("1", "L", "P") else 4
    more = 16 if image.has_transparency_data else 4
    need = image.width * image.height * (2 * own + more)
    if need > (free := psutil.virtual_memory().available):
        raise BadImageError(f"{image.width}x{image.height} pixels take {need / 1e9:.1f} GB of "
                            f"memory, {free / 1e9:.1f} GB are free: make it smaller")  # fmt: skip


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
        raise _damaged(error) from None
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
        raise _damaged(error) from None


def _damaged(error: Exception) -> BadImageError:
    if isinstance(error, UnidentifiedImageError):
        return BadImageError("damaged: not a PNG file")
    return BadImageError(f"damaged: {' '.join(str(error).split())[:80]}")
