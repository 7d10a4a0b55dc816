"""The right pixels of whatever people have, or a reason; most files are written byte by byte."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from srdd_platform.data import formats, pixels
from srdd_platform.data.modes import BadImageError
from srdd_platform.data.pixels import load_image, own_files, read_image
from tests.srdd_platform.data.image_files import (
    chunk,
    exif,
    jpeg_with_exif,
    orientation,
    png,
    tiff,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
RGB_16 = RNG.integers(0, 65536, (8, 8, 3), dtype=np.uint16)
GREY_16 = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040
ALPHA_16 = np.full((8, 8, 1), 65535, dtype=np.uint16)
TURNED = {  # what a viewer shows of stored pixels, by orientation
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}


def read(data: bytes, tmp_path: Path, name: str = "x.png") -> np.ndarray[Any, Any]:
    (tmp_path / name).write_bytes(data)
    return read_image(tmp_path / name, 8)


def reason(data: bytes, tmp_path: Path, name: str = "x.png") -> str:
    with pytest.raises(BadImageError) as caught:
        read(data, tmp_path, name)
    assert str(tmp_path) not in str(caught.value)
    return str(caught.value)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values)[..., None].repeat(3, axis=2)


LONG = zlib.compress(b'{"nodes": [1, 2, 3]} ' * 120_000)  # 2.5 MB
BROKEN = chunk(b"iCCP", b"name\0\0" + zlib.compress(b"profile"))[:-4] + b"\0\0\0\0"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "more",
    [
        chunk(b"zTXt", b"workflow\0\0" + LONG),  # ComfyUI's
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),  # Pillow#2445, #5610
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(3_000_000))),  # Pillow#8363
        chunk(b"tEXt", b"key\0" + b"x" * 3_000_000),
        BROKEN,
        chunk(b"eXIf", b"no EXIF"),
    ],
    ids=["text", "XMP", "profile", "3 MB in a limit of 2 MB", "checksum of a profile", "EXIF"],
)
def test_what_a_png_holds_beside_pixels_costs_nothing(
    tmp_path: Path, more: bytes, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 2_000_000)  # of all text; it is 67 MB
    data = png(RGB, 2, **{"after" if after else "before": more})
    np.testing.assert_array_equal(read(data, tmp_path), RGB)


def test_a_png_read_without_its_text_keeps_orientation_and_transparency(tmp_path: Path) -> None:
    more = chunk(b"zTXt", b"workflow\0\0" + LONG) + chunk(b"eXIf", exif([orientation(6)]))
    palette = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    colours = RNG.integers(0, 256, (64, 3), dtype=np.uint8)
    alpha = RNG.integers(0, 256, 64, dtype=np.uint8)
    more += chunk(b"PLTE", colours.tobytes()) + chunk(b"tRNS", alpha.tobytes())
    over = alpha[:, None] / 255
    expected = (colours * over + 255 * (1 - over))[palette[..., 0]]
    found = read(png(palette, 3, more), tmp_path)
    assert abs(found - TURNED[6](expected)).max() <= 1


def test_damaged_pixels_of_a_png_stay_damage(tmp_path: Path) -> None:
    data = bytearray(png(RGB, 2, chunk(b"zTXt", b"workflow\0\0" + LONG)))
    data[-30] ^= 1  # in the pixels
    assert reason(bytes(data), tmp_path) == "broken data stream when reading image file"


TAGS = st.lists(
    st.tuples(
        st.integers(0, 0xFFFF).filter(lambda tag: tag != 0x0112),
        st.integers(0, 13),  # types, two of them unknown
        st.sampled_from([0, 1, 2, 5, 2**31]),
        st.binary(min_size=4, max_size=4),
    ),
    max_size=4,
    unique_by=lambda entry: entry[0],
)
STORED = RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8)
IMAGE = Image.fromarray(STORED)
WEBP, JPEG = saved(IMAGE, "webp", lossless=True), saved(IMAGE, "jpeg", quality=95)
DECODED = np.asarray(Image.open(io.BytesIO(JPEG)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.sampled_from("<>"), TAGS, st.sampled_from(["jpeg", "png"]))
def test_the_orientation_is_read_whatever_else_exif_holds(
    tmp_path_factory: pytest.TempPathFactory, turn: int, order: str, tags: list[Any], kind: str
) -> None:
    """Pillow#8965, #4037: EXIF that cannot be written back has an orientation all the same."""
    found = exif([orientation(turn, order), *tags], order)
    if kind == "jpeg":
        data, stored = jpeg_with_exif(JPEG, found), DECODED
    else:
        data, stored = png(STORED, 2, chunk(b"eXIf", found)), STORED
    path = tmp_path_factory.getbasetemp() / f"photo.{kind}"
    path.write_bytes(data)
    upright = TURNED[turn](stored)
    top, left = ((side - 8) // 2 for side in upright.shape[:2])
    with own_files():
        np.testing.assert_array_equal(read_image(path, 8), upright[top : top + 8, left : left + 8])


@pytest.mark.parametrize(
    "entry",
    [
        (0x011A, 10, 1, struct.pack("<I", 38)),  # a signed resolution
        (0x0128, 4, 1, struct.pack("<I", 2**32 - 1)),  # a unit beyond 16 bits
        (0x8769, 4, 1, struct.pack("<I", 10**6)),  # a directory beyond the file
        (0x927C, 7, 2**31, bytes(4)),  # a maker's note longer than the file
    ],
)
def test_exif_that_cannot_be_written_back(tmp_path: Path, entry: Any) -> None:
    data = jpeg_with_exif(JPEG, exif([orientation(6), entry]) + struct.pack("<ii", -72, 1))
    np.testing.assert_array_equal(read(data, tmp_path, "x.jpg"), TURNED[6](DECODED)[2:10])


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_is_turned_once(tmp_path: Path, turn: int, order: str) -> None:
    data = tiff(RGB.tobytes(), (8, 8), 8, 2, bands=3, turn=turn, order=order)
    np.testing.assert_array_equal(read(data, tmp_path, "x.tif"), TURNED[turn](RGB))


def test_sixteen_bits_of_colour(tmp_path: Path) -> None:
    """Pillow keeps the upper byte: within one level of the rounded value."""
    rgba = np.concatenate((RGB_16, ALPHA_16), axis=2)
    files = {
        "rgb.png": png(RGB_16, 2),
        "rgba.png": png(rgba, 6),
        "little.tif": tiff(RGB_16.astype("<u2").tobytes(), (8, 8), 16, 2, bands=3),
        "big.tif": tiff(RGB_16.astype(">u2").tobytes(), (8, 8), 16, 2, bands=3, order=">"),
        "rgba.tif": tiff(rgba.tobytes(), (8, 8), 16, 2, bands=4, extra=2),
    }
    for name, data in files.items():
        assert abs(read(data, tmp_path, name) - RGB_16 / 257).max() < 1, name


def test_sixteen_bits_of_grey(tmp_path: Path) -> None:
    expected = grey(np.round(GREY_16 / 257))
    white_is_zero = (65535 - GREY_16).astype(np.uint16)
    signed = (GREY_16 // 2).astype("<i2")
    twelve = np.arange(64).reshape(8, 8) * 65
    packed = b"".join(
        bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in twelve.reshape(-1, 2).tolist()
    )
    for name, data, wanted in (
        ("grey.png", png(GREY_16[..., None], 0), expected),
        ("little.tif", tiff(GREY_16.astype("<u2").tobytes(), (8, 8), 16, 1), expected),
        ("big.tif", tiff(GREY_16.astype(">u2").tobytes(), (8, 8), 16, 1, order=">"), expected),
        ("fax.tif", tiff(white_is_zero.tobytes(), (8, 8), 16, 0), expected),
        ("twelve.tif", tiff(packed, (8, 8), 12, 1), grey(np.round(twelve / 4095 * 255))),
        ("signed.tif", tiff(signed.tobytes(), (8, 8), 16, 1, sample_format=2),
         grey(np.round(signed / 257))),
        ("alpha.png", png(np.stack((GREY_16, ALPHA_16[..., 0]), axis=2), 4), grey(GREY_16 >> 8)),
    ):  # fmt: skip
        np.testing.assert_array_equal(read(data, tmp_path, name), wanted, err_msg=name)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (np.full(64, -5, dtype="<i2"), "grey values from -5 to -5: save it with 8 or 16 bits"),
        (np.full(64, 70_000, dtype="<i4"), "grey values from 70000 to 70000: save it with 8 or"),
        (np.full(64, 0.5, dtype="<f4"), "floating-point pixels: save it with 8 or 16 bits"),
    ],
)
def test_values_without_a_white_are_refused(tmp_path: Path, data: Any, text: str) -> None:
    form = 3 if data.dtype.kind == "f" else 2
    file = tiff(data.tobytes(), (8, 8), 8 * data.itemsize, 1, sample_format=form)
    assert reason(file, tmp_path, "x.tif").startswith(text)


@pytest.mark.parametrize("bits", [8, 16])
def test_one_transparent_value(tmp_path: Path, bits: int) -> None:
    """A PNG's tRNS: one grey or colour that is transparent, here the first pixel's."""
    for colour, stored in ((0, GREY_16[..., None] + 7), (2, RGB_16)):
        values = stored if bits == 16 else (stored >> 8).astype(np.uint8)
        key = struct.pack(f">{values.shape[2]}H", *values[2, 3].tolist())
        found = read(png(values, colour, chunk(b"tRNS", key)), tmp_path)
        assert found[2, 3].tolist() == [255, 255, 255]
        kept = np.broadcast_to(values / (257 if bits == 16 else 1), (8, 8, 3)).copy()
        kept[2, 3] = 255
        assert abs(found - kept).max() < 1


def test_premultiplied_alpha(tmp_path: Path) -> None:
    """A TIFF with associated alpha: a pixel of red at half, stored as (128, 0, 0, 128)."""
    rgba = np.tile(np.array([128, 0, 0, 128], dtype=np.uint8), (8, 8, 1))
    found = read(tiff(rgba.tobytes(), (8, 8), 8, 2, bands=4, extra=1), tmp_path, "x.tif")
    assert abs(found.astype(int) - [255, 127, 127]).max() <= 1
    both = np.tile(np.array([64, 128], dtype=np.uint8), (8, 8, 1))
    found = read(tiff(both.tobytes(), (8, 8), 8, 1, bands=2, extra=1), tmp_path, "y.tif")
    assert abs(found.astype(int) - 191).max() <= 1


CMYK = np.array([200, 40, 90, 30])
FROM_CMYK = (255 - CMYK[:3]) * (255 - CMYK[3]) / 255


def adobe_jpeg(transform: int) -> bytes:
    """Four planes of one colour each, inverted as Adobe does it; transform 2 is YCCK."""
    if transform == 2:
        r, g, b, k = CMYK.tolist()  # the inks of the inverted CMYK, inverted once more, as YCbCr
        y = 0.299 * r + 0.587 * g + 0.114 * b
        planes = [y, 128 + (b - y) * 0.564, 128 + (r - y) * 0.713, 255 - k]
    else:
        planes = (255 - CMYK).tolist()
    # Pillow inverts what it writes
    stored = np.tile(255 - np.round(planes).astype(np.uint8), (16, 16, 1))
    data = saved(Image.fromarray(stored, "CMYK"), "jpeg", quality=100, subsampling=0)
    place = data.index(b"Adobe")
    return data[: place + 11] + bytes([transform]) + data[place + 12 :]


def test_cmyk(tmp_path: Path) -> None:
    flat = np.tile(CMYK.astype(np.uint8), (8, 8, 1)).tobytes()
    for name, data in {
        "x.tif": tiff(flat, (8, 8), 8, 5, bands=4),
        "cmyk.jpg": adobe_jpeg(0),
        "ycck.jpg": adobe_jpeg(2),
    }.items():
        found = read(data, tmp_path, name).reshape(-1, 3)
        assert abs(found - FROM_CMYK).max() <= 3, (name, found[0], FROM_CMYK)


def srgb_of_lab(lab: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """CIELAB under D50 to sRGB, by its definition and Bradford's adaptation to D65."""
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    bradford = np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335],
                         [0.0719, -0.2290, 1.4052]])  # fmt: skip
    linear = (bradford @ xyz).clip(0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return 255 * coded


@pytest.mark.parametrize(
    "lab", [(100, 0, 0), (0, 0, 0), (55, 40, 25), (60, -30, 30), (40, 15, -40)]
)
def test_lab(tmp_path: Path, lab: tuple[int, ...]) -> None:
    stored = bytes((round(lab[0] * 2.55), lab[1] % 256, lab[2] % 256))
    found = read(tiff(stored * 64, (8, 8), 8, 8, bands=3), tmp_path, "x.tif")
    assert abs(found - srgb_of_lab(np.array(lab))).max() <= 3


def test_one_bit(tmp_path: Path) -> None:
    bits = RNG.integers(0, 2, (8, 8), dtype=np.uint8)
    packed = np.packbits(bits, axis=1).tobytes()
    for photometric, expected in ((1, 255 * bits), (0, 255 - 255 * bits)):
        found = read(tiff(packed, (8, 8), 1, photometric), tmp_path, "x.tif")
        np.testing.assert_array_equal(found, grey(expected))


FRAMES = [Image.fromarray(RGB), Image.new("RGB", (8, 8), "blue"), Image.new("RGB", (8, 8), "red")]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("png", {}), ("webp", {"lossless": True}), ("tiff", {}), ("gif", {})],
)
def test_the_first_of_several_images_is_taken(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    first = FRAMES[0].quantize(64).convert("RGB") if kind == "gif" else FRAMES[0]
    many = saved(first, kind, save_all=True, append_images=FRAMES[1:], **options)
    one = saved(first, kind, **options)
    for data, several in ((many, True), (one, False)):
        (tmp_path / "x").write_bytes(data)
        loaded = load_image(tmp_path / "x", 8)
        np.testing.assert_array_equal(loaded.pixels, np.asarray(first))
        assert loaded.first_of_many == several


def test_a_photo_with_a_preview_inside_is_one_image(tmp_path: Path) -> None:
    """Phones put depth maps and previews behind a JPEG (MPO)."""
    (tmp_path / "x.jpg").write_bytes(saved(FRAMES[0], "mpo", save_all=True,
                                           append_images=FRAMES[1:]))  # fmt: skip
    assert not load_image(tmp_path / "x.jpg", 8).first_of_many


def test_own_files_may_be_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """webknossos-libs#892, geti_v2#1486: Pillow refuses more than 179 megapixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert "exceeds limit" in reason(png(RGB, 2), tmp_path)
    with own_files():
        np.testing.assert_array_equal(read(png(RGB, 2), tmp_path), RGB)
        found = read(tiff(RGB.tobytes(), (8, 8), 8, 2, bands=3), tmp_path, "x.tif")
        np.testing.assert_array_equal(found, RGB)
    assert Image.MAX_IMAGE_PIXELS == 20


def test_a_huge_jpeg_is_decoded_at_a_fraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: (sizes.append(self.size), load(self))[1]
    )
    ramp = Image.linear_gradient("L").resize((1024, 1200)).convert("RGB")
    data = saved(ramp, "jpeg", quality=95)
    whole = read(data, tmp_path, "x.jpg")
    assert set(sizes) == {(1024, 1200)}
    monkeypatch.setattr(pixels, "HUGE", 10**6)
    sizes.clear()
    small = read(data, tmp_path, "x.jpg")
    assert set(sizes) == {(128, 150)}
    assert abs(whole.astype(int) - small).max() <= 3


def test_what_does_not_fit_into_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "LARGE", 60)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=700))
    text = "8x8 pixels take 0.0 GB of memory, 0.0 GB are free: make it smaller"
    assert reason(png(RGB, 2), tmp_path) == text
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=800))
    np.testing.assert_array_equal(read(png(RGB, 2), tmp_path), RGB)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not an image: the file is empty"),
        (b"no image", "not an image of a known format"),
        (b"\n<!DOCTYPE html><html>404", "an HTML page, not an image: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer, not the"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "AVIF: `pip install -U pillow` lets it be read"),
        (png(RGB, 2)[:20], "Truncated File Read"),
        (png(RGB, 9), "a PNG file that is damaged, or of a kind that cannot be read"),
        (tiff(bytes(256), (8, 8), 32, 0), "a TIFF file that is damaged, or of a kind that cannot"),
        (saved(IMAGE.resize((99, 99)), "jpeg")[:-500], "image file is truncated"),
        (png(RGB, 2)[:-40], "image file is truncated"),
        (saved(IMAGE, "webp")[:60], "could not create decoder object"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_what_cannot_be_read_says_what_it_is(tmp_path: Path, data: bytes, text: str) -> None:
    assert reason(data, tmp_path, "x.jpg").startswith(text)


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    for name in ("x.jpg", "x.tif", "x.gif"):
        np.testing.assert_array_equal(read(png(RGB, 2), tmp_path, name), RGB)


@pytest.mark.usefixtures("without_heif")
def test_heic_without_its_library_is_named(tmp_path: Path) -> None:
    assert not formats.is_read(".heic")
    assert reason(HEIC, tmp_path, "x.heic") == "HEIC: `pip install pillow-heif` lets it be read"


@pytest.mark.parametrize("name", ["x.heic", "x.HIF", "x.jpg"])
def test_heic_is_read_upright_whatever_its_extension(tmp_path: Path, name: str) -> None:
    """As a phone writes it: HEIC, turned by its EXIF; read by the real library."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:16] = (200, 30, 40)  # red above, black below
    exif = Image.Exif()
    exif[0x112] = 6  # turn by 90 degrees to the right: red comes to the right side
    data = saved(Image.fromarray(halves), "heif", exif=exif.tobytes(), quality=-1)
    (tmp_path / name).write_bytes(data)
    found = read_image(tmp_path / name, 32).astype(int)
    assert abs(found[:, 20:] - (200, 30, 40)).max() <= 3
    assert found[:, :12].max() <= 3


def test_avif_is_read_where_pillow_has_it(tmp_path: Path) -> None:
    if not formats.reads_avif():
        pytest.skip("this Pillow was built without AVIF")
    data = saved(Image.new("RGB", (8, 8), (200, 30, 60)), "avif", quality=100)
    found = read(data, tmp_path, "x.avif")
    assert abs(found.astype(int) - [200, 30, 60]).max() <= 3


def test_the_library_s_warnings_are_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """They name no file."""
    palette = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    corrupt = chunk(b"eXIf", exif([orientation(1), (0x010F, 2, 900, bytes(4))]))
    colours = chunk(b"PLTE", bytes(64 * 3)) + chunk(b"tRNS", bytes(64))
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        read(png(RGB, 2, corrupt), tmp_path)
        assert shown, "the file does not warn: the test shows nothing"
        shown.clear()
        with own_files():
            read(png(RGB, 2, corrupt), tmp_path)
            read(png(palette, 3, colours), tmp_path)
        assert shown == []
    many = tiff(bytes(64 * 99), (8, 8), 8, 2, bands=99)
    assert reason(many, tmp_path, "x.tif").startswith("a TIFF file that is damaged")
    assert capfd.readouterr() == ("", "")
