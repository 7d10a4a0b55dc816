"""Pillow's modes to RGB: grey of 16 bits, palettes, transparency, CMYK, LAB.

Colour profiles are not applied, as in torchvision: CMYK and RGB are converted by their numbers.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


class BadImageError(Exception):
    """An image that cannot be used; the text says why and holds no path."""


WHITE_16 = 65535
_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit grey is scaled to 8, transparency is laid on white.

    Raises:
        BadImageError: floating-point pixels, or integers beyond 16 bits.
    """
    if image.mode == "F":
        raise BadImageError("floating-point pixels: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _grey(image)
    if image.mode == "LAB":
        return _lab(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, _rgba(image)).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (12 in some TIFF files), rounded to 8; of a PNG its transparent value too."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > WHITE_16:
        raise BadImageError(f"grey values from {low} to {high}: save it with 8 or 16 bits")
    tags: Any = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(_BITS) == (12,) else WHITE_16
    found: npt.NDArray[np.uint32] = values.astype(np.uint32)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        found = white - found
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        found[values == transparent] = white
    return Image.fromarray(((found * 255 + white // 2) // white).astype(np.uint8)).convert("RGB")


def _rgba(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # of a PNG with 16 bits, of which Pillow keeps the upper 8
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image.convert("RGBA")


def _lab(image: Image.Image) -> Image.Image:
    try:
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        found = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    except (ImportError, ImageCms.PyCMSError) as error:
        raise BadImageError(f"LAB colours ({error}): save it as RGB") from None
    assert found is not None
    return found
