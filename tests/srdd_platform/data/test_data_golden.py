"""Shards of known sources stay what they were: which images, in which order, with which pixels."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from srdd_platform.data.manifest import Manifest
from srdd_platform.data.shards import prepare

RECORDED_WITH = "13.0.0"  # Pillow: another may encode the same pixels in other bytes


def mixed_tree(root: Path) -> None:
    """Three classes in the formats and modes that people have, in lossless files."""
    rng = np.random.default_rng(0)
    for name, modes in {
        "cat": ("RGB", "L", "RGBA", "1"),
        "dog": ("P", "LA", "RGB", "I;16"),
        "eel": ("RGB", "CMYK", "YCbCr", "L"),
    }.items():
        for i in range(12):
            height, width = (int(side) for side in rng.integers(9, 40, 2))
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            mode = modes[i % 4]
            if mode == "I;16":
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 250)
            else:
                image = Image.fromarray(pixels).convert(mode)
            exif = Image.Exif()
            exif[0x0112] = 1 + i % 8
            ending = "tif" if mode in ("CMYK", "YCbCr") else ("png", "bmp", "png", "PNG")[i % 4]
            ending = "png" if ending == "bmp" and mode not in ("RGB", "L") else ending
            more = {} if ending == "bmp" else {"exif": exif}
            path = root / name / ("deep" if i == 5 else "") / f"{i:02d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, **more)
    (root / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(root / ".hidden" / "x.png")
    (root / "cat" / ".DS_Store").touch()
    (root / "cat" / "notes.txt").touch()


def content(directory: Path, manifest: Manifest) -> str:
    """A hash of all that a reader sees of the shards."""
    hashed = hashlib.sha256()
    for split in manifest.splits.values():
        for shard in split.shards:
            with tarfile.open(directory / shard.name) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    data = file.read()
                    if member.name.endswith(".png"):
                        with Image.open(io.BytesIO(data)) as image:
                            data = f"{image.mode}{image.size}".encode() + image.tobytes()
                    hashed.update(member.name.encode() + b"\0" + data)
    return hashed.hexdigest()[:16]


@pytest.mark.parametrize(
    ("source", "keep", "listing", "seen", "fingerprint"),
    [
        ("digits", 1.0, "b41ca9fd335466ee", "03ee2507530e2549", "60761776b468f5c4"),
        ("folder", 1.0, "d79270e8a927de81", "3e5efb0df92cc839", "665ac67e2bb9205c"),
        ("folder", 1.125, "d79270e8a927de81", "76d1bfdfeaeedf5e", "0db99507410cc44a"),
    ],
)
def test_shards_are_what_they_were(
    tmp_path: Path, source: str, keep: float, listing: str, seen: str, fingerprint: str
) -> None:
    path = None
    if source == "folder":
        path = tmp_path / "tree"
        mixed_tree(path)
    manifest = prepare(source=source, path=path, resolution=16, keep=keep, out=tmp_path / "out")
    assert manifest.skipped == ()
    assert manifest.settings.listing == listing
    assert content(tmp_path / "out", manifest) == seen
    if PIL.__version__ == RECORDED_WITH:
        assert manifest.fingerprint == fingerprint
