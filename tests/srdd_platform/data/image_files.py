"""Image files written byte by byte, so that what they mean does not depend on who reads them."""

import struct
import zlib

import numpy as np
import numpy.typing as npt

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    colour: int,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG of 8 or 16 bits.

    Args:
        pixels: [H, W, bands].
        colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        before: chunks before the pixels.
        after: chunks after them.
    """
    height, width = pixels.shape[:2]
    bits = 8 * pixels.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join(
        (PNG, chunk(b"IHDR", header), before, chunk(b"IDAT", packed), after, chunk(b"IEND", b""))
    )


def exif(entries: list[tuple[int, int, int, bytes]], order: str = "<") -> bytes:
    """EXIF: entries of (tag, type, count, the four bytes of its value or of its offset)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    rows = [struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in sorted(entries)]
    return head + b"".join(rows) + b"\0\0\0\0"


def orientation(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    """The entry of EXIF that says how an image is turned."""
    return (0x0112, 3, 1, struct.pack(order + "HH", value, 0))


def jpeg_with_exif(jpeg: bytes, tiff: bytes) -> bytes:
    """A JPEG with EXIF put in front of it."""
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def tiff(
    data: bytes,
    size: tuple[int, int],
    bits: int,
    photometric: int,
    *,
    bands: int = 1,
    sample_format: int = 1,
    extra: int | None = None,
    turn: int = 1,
    order: str = "<",
) -> bytes:
    """An uncompressed TIFF of one strip.

    Args:
        data: the pixels as they are stored.
        size: width and height.
        bits: of a sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK, 8 CIELAB.
        bands: samples of a pixel.
        sample_format: 1 unsigned, 2 signed, 3 floating-point.
        extra: what a band more than the colours is: 1 premultiplied alpha, 2 alpha.
        turn: the orientation.
        order: "<" little-endian, ">" big-endian.
    """
    short = {
        258: (bits,) * bands, 259: (1,), 262: (photometric,), 274: (turn,), 277: (bands,),
        339: (sample_format,) * bands, **({} if extra is None else {338: (extra,)}),
    }  # fmt: skip
    long = {256: size[0], 257: size[1], 273: 0, 278: size[1], 279: len(data)}
    at = 8 + 2 + 12 * (len(short) + len(long)) + 4
    rows, beyond = [], b""
    for tag, values in short.items():
        raw = struct.pack(order + "H" * len(values), *values)
        if len(raw) > 4:
            place = struct.pack(order + "I", at + len(beyond))
            beyond, raw = beyond + raw, place
        rows.append((tag, 3, len(values), raw.ljust(4, b"\0")))
    long[273] = at + len(beyond)
    rows += [(tag, 4, 1, struct.pack(order + "I", value)) for tag, value in long.items()]
    return exif(rows, order) + beyond + data
