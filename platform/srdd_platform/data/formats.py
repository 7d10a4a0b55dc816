"""Kinds of image files: which ones are read, which library reads another, what a file really is."""

import struct
import zlib
from functools import cache

from PIL import features

EXTENSIONS = frozenset(
    ".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
HEIF = frozenset({".heic", ".heif", ".hif"})
CONVERT = "save them as PNG or JPEG"
REMEDIES = {  # of image files that are not read
    **dict.fromkeys(HEIF, "`pip install pillow-heif` lets them be read"),
    ".avif": "`pip install -U pillow` lets them be read",
    **dict.fromkeys(
        ".arw .bpg .cr2 .cr3 .dcm .dds .dng .exr .hdr .ico .j2k .jp2 .jxl .nef .npy .orf .psd .raf "
        ".rw2 .svg .tga .xcf".split(),
        CONVERT,
    ),
}

ORIENTATION = 0x0112  # a tag of EXIF
PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_SIGNATURES = {
    PNG: "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


@cache
def reads_heif() -> bool:
    """Whether HEIC files can be read: pillow-heif is installed. It is imported when asked for."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@cache
def reads_avif() -> bool:
    """Whether AVIF files can be read: Pillow was built with it."""
    return bool(features.check("avif"))


def is_read(extension: str) -> bool:
    """Whether files of an extension are read as images.

    Args:
        extension: in lower case, with its dot; "" for none.
    """
    if extension in HEIF:
        return reads_heif()
    return extension in EXTENSIONS or (extension == ".avif" and reads_avif())


def is_heif(data: bytes) -> bool:
    """Whether a file is HEIC by its content, whatever its extension says."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def why_unreadable(data: bytes) -> str:
    """What a file is that no image could be read from."""
    if not data:
        return "not an image: the file is empty"
    if data.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image: `git lfs pull` fetches it"
    if data[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image: download it again"
    if is_heif(data):
        return "HEIC: `pip install pillow-heif` lets it be read"
    if data[4:12] == b"ftypavif":
        return "AVIF: `pip install -U pillow` lets it be read"
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return f"a {name} file that is damaged, or of a kind that cannot be read"
    return "not an image of a known format"


def png_pixels(data: bytes) -> bytes:
    """A PNG without its text, profiles and the like: what its pixels need, and its orientation.

    Chunks that are cut off or out of place stay as they are, so that damage stays damage.
    """
    kept = [PNG]
    place = len(PNG)
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        name, end = data[place + 4 : place + 8], place + 12 + size
        whole = data[place + 4 : end - 4]
        sound = zlib.crc32(whole) == int.from_bytes(data[end - 4 : end], "big")
        if name in _PNG_NEEDED or (name == b"eXIf" and sound):
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def orientation(exif: bytes) -> int | None:
    """The orientation in EXIF, whatever is wrong with its other entries; None where there is none.

    Pillow stops at the first entry that points beyond the file, and viewers do not.

    Raises:
        struct.error: the list of entries itself is cut off.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    (num,) = struct.unpack_from(f"{order}H", tiff, first)
    for place in range(first + 2, first + 2 + 12 * num, 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, place)
        if (tag, kind) == (ORIENTATION, 3):
            return int(value)
    return None
