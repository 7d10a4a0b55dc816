"""The index finds every kind of damage before training, and names the shard."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from srdd.errors import UserError
from srdd_platform.data import Manifest, ShardDataset, prepare
from srdd_platform.data.index import BadShardError, build_index, load_split

SHARD = "train-000001.tar"


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
    index = build_index(data / SHARD)
    assert len(index) == 500
    with tarfile.open(data / SHARD) as tar, (data / SHARD).open("rb") as file:
        for i in (0, 123, 499):
            key = str(index.keys[i])
            assert key == f"train-{500 + i:08d}"
            file.seek(index.offsets[i])
            png = tar.extractfile(f"{key}.png").read()
            assert file.read(index.sizes[i]) == png
            assert png.startswith(b"\x89PNG")
            assert index.labels[i] == int(tar.extractfile(f"{key}.cls").read())
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


def missing(path: Path) -> None:
    path.unlink()


def other_class(path: Path) -> None:
    overwrite(path, header_of(path, 3, "cls") + 512, b"x")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damaged_header, "damaged or truncated at byte"),
        (zeroed_header, "200 samples, not the 500"),
        (first_header, "damaged"),
        (one_bit, "damaged or truncated at byte"),
        (truncated, "bytes, not the"),
        (without_end, "bytes, not the"),
        (missing, "missing"),
        (other_class, "the class of train-00000503 is not a number"),
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_damage_is_found_and_named(
    data: Path, damage: Callable[[Path], None], why: str, indexed: bool
) -> None:
    if indexed:  # a cached index must not hide what happened since
        ShardDataset(data, "train")
        os.utime(data / SHARD, ns=(0, 0))
    damage(data / SHARD)
    with pytest.raises(UserError, match=why) as caught:
        ShardDataset(data, "train")
    assert SHARD in str(caught.value)
    assert "train-000000.tar" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(ShardDataset(data, "val")) == 360


@pytest.mark.parametrize("damage", [truncated, without_end, damaged_header])
def test_the_headers_alone_show_the_damage(data: Path, damage: Callable[[Path], None]) -> None:
    """Even where size and count are not known."""
    damage(data / SHARD)
    with pytest.raises(BadShardError, match=r"truncated|end of data"):
        build_index(data / SHARD)


def test_all_damaged_shards_are_named(data: Path) -> None:
    missing(data / "train-000000.tar")
    damaged_header(data / "train-000002.tar")
    with pytest.raises(UserError, match=r"train-000000.*missing.*train-000002.*damaged"):
        ShardDataset(data, "train")


def test_verify_finds_one_flipped_bit_in_a_pixel(data: Path) -> None:
    offset = header_of(data / SHARD, 7, "png") + 512 + 60
    byte = (data / SHARD).read_bytes()[offset]
    overwrite(data / SHARD, offset, bytes([byte ^ 1]))
    manifest = Manifest.load(data)
    load_split(data, manifest, "train")  # headers alone do not show it
    with pytest.raises(UserError, match=r"train-000001\.tar \(its SHA-256"):
        load_split(data, manifest, "train", verify=True)


def test_the_index_is_built_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ShardDataset(data, "train")
    assert sorted(path.name for path in data.glob("*.npz")) == [
        f"train-{i:06d}.tar.index.npz" for i in range(3)
    ]
    monkeypatch.setattr("srdd_platform.data.index.build_index", lambda path: pytest.fail("built"))
    again = ShardDataset(data, "train", verify=True)
    np.testing.assert_array_equal(again.keys, first.keys)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again[600]["image"].equal(first[600]["image"])


@pytest.mark.parametrize("stored", [b"", b"PK\x03\x04 half", b"\x93NUMPY"])
def test_a_damaged_cache_is_rebuilt(data: Path, stored: bytes) -> None:
    expected = ShardDataset(data, "train").labels
    cache = data / f"{SHARD}.index.npz"
    whole = cache.read_bytes()
    cache.write_bytes(stored)
    np.testing.assert_array_equal(ShardDataset(data, "train").labels, expected)
    assert cache.read_bytes() == whole


def test_a_read_only_directory_works(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("srdd_platform.files.write_bytes", refuse)
    assert len(ShardDataset(data, "train")) == 1437
    assert list(data.glob("*.npz")) == []


def test_an_unknown_split_is_refused(data: Path) -> None:
    with pytest.raises(UserError, match="no split 'test', only train, val"):
        ShardDataset(data, "test")
