"""The index of a shard: where it points, what it refuses, what it saves from damage."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from srdd.errors import UserError
from srdd_platform.data.dataset import ShardDataset
from srdd_platform.data.index import BadShardError, build_index, read_index, salvage_index
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.shards import prepare

SHARD = "train-000001.tar"
KEYS = [f"train-{i:08d}" for i in range(500, 1000)]
CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits at 8 px in train shards of 500, 500 and 437."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(source="digits", resolution=8, out=out, shard_size_images=500)
    return out


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def header_of(path: Path, i: int, kind: str) -> int:
    """Offset of one member's header."""
    with tarfile.open(path) as tar:
        return tar.getmembers()[3 * i + ("cls", "json", "png").index(kind)].offset


def test_the_index_points_at_the_members(data: Path) -> None:
    index = build_index(data / SHARD, KEYS)
    assert len(index) == 500
    with tarfile.open(data / SHARD) as tar, (data / SHARD).open("rb") as file:
        for i in (0, 123, 499):
            png = tar.extractfile(f"{KEYS[i]}.png").read()
            file.seek(index.offsets[i])
            assert file.read(index.sizes[i]) == png
            assert png.startswith(b"\x89PNG")
            assert index.labels[i] == int(tar.extractfile(f"{KEYS[i]}.cls").read())
    assert index.labels.dtype == index.offsets.dtype == index.sizes.dtype == np.int64


def damaged_header(path: Path) -> None:
    overwrite(path, header_of(path, 200, "json"), os.urandom(512))


def zeroed_header(path: Path) -> None:
    overwrite(path, header_of(path, 200, "cls"), bytes(1024))


def first_header(path: Path) -> None:
    overwrite(path, 0, b"x" * 512)


def one_bit(path: Path) -> None:
    offset = header_of(path, 77, "png") + 130  # in the size field
    byte = path.read_bytes()[offset]
    overwrite(path, offset, bytes([byte ^ 1]))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def without_end(path: Path) -> None:
    os.truncate(path, header_of(path, 499, "png"))


def other_class(path: Path) -> None:
    overwrite(path, header_of(path, 3, "cls") + 512, b"x")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damaged_header, "damaged or truncated at byte"),
        (zeroed_header, "200 samples, not the 500"),
        (first_header, "damaged"),
        (one_bit, "damaged or truncated at byte"),
        (truncated, r"truncated|end of data"),
        (without_end, r"truncated|end of data"),
        (other_class, "the class of train-00000503 is not a number"),
    ],
)
def test_the_headers_alone_show_damage(
    data: Path, damage: Callable[[Path], None], why: str
) -> None:
    damage(data / SHARD)
    with pytest.raises(BadShardError, match=why):
        build_index(data / SHARD, KEYS)


def test_samples_of_another_shard_are_refused(data: Path) -> None:
    shutil.copyfile(data / "train-000000.tar", data / SHARD)
    with pytest.raises(BadShardError, match="500 samples, not the 500 of the manifest"):
        build_index(data / SHARD, KEYS)


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (damaged_header, [200]),
        (zeroed_header, [200]),
        (first_header, [0]),
        (one_bit, [77]),
        (other_class, [3]),
        (without_end, [499]),
    ],
)
def test_what_is_whole_is_saved(
    data: Path, damage: Callable[[Path], None], lost: list[int]
) -> None:
    """A damaged header loses its sample, not those behind it."""
    whole = build_index(data / SHARD, KEYS)
    damage(data / SHARD)
    found = salvage_index(data / SHARD, KEYS, CLASSES)
    assert np.flatnonzero(found.sizes == 0).tolist() == lost
    kept = found.sizes > 0
    for name in ("labels", "offsets", "sizes"):
        np.testing.assert_array_equal(getattr(found, name)[kept], getattr(whole, name)[kept])


def test_a_sample_that_contradicts_itself_is_lost(data: Path) -> None:
    """A class that is another digit reads well, but its name is another."""
    whole = build_index(data / SHARD, KEYS)
    other = str((int(whole.labels[9]) + 1) % 10).encode()
    overwrite(data / SHARD, header_of(data / SHARD, 9, "cls") + 512, other)
    found = salvage_index(data / SHARD, KEYS, CLASSES)
    assert np.flatnonzero(found.sizes == 0).tolist() == [9]


def test_the_index_is_written_with_the_shard(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And names the shard's bytes alone: no time, so that it may be copied with it."""
    names = [f"train-{i:06d}.tar.index.npz" for i in range(3)]
    assert sorted(path.name for path in data.glob("train-*.npz")) == names
    manifest = Manifest.load(data)
    first, second, _ = manifest.splits["train"].shards
    assert read_index(data / names[1], second) is not None
    assert read_index(data / names[1], first) is None
    monkeypatch.setattr("srdd_platform.data.index.build_index", lambda *_: pytest.fail("built"))
    assert len(ShardDataset(data, "train")) == 1437


@pytest.mark.parametrize("stored", [None, b"", b"PK\x03\x04 half", b"\x93NUMPY"])
def test_a_damaged_index_is_rebuilt(data: Path, stored: bytes | None) -> None:
    expected = ShardDataset(data, "train").labels
    beside = data / f"{SHARD}.index.npz"
    whole = beside.read_bytes()
    if stored is None:
        beside.unlink()
    else:
        beside.write_bytes(stored)
    (data / ".inspected.json").unlink()
    np.testing.assert_array_equal(ShardDataset(data, "train").labels, expected)
    assert beside.read_bytes() == whole


def test_an_unknown_split_is_refused(data: Path) -> None:
    with pytest.raises(UserError, match="no split 'test', only train, val"):
        ShardDataset(data, "test")
