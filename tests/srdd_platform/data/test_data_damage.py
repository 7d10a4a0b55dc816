"""Damage is found before training, named, counted, and left out up to a limit."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from srdd.errors import UserError
from srdd_platform.data.damage import INSPECTED, left_out
from srdd_platform.data.dataset import ShardDataset
from srdd_platform.data.shards import prepare
from srdd_platform.data.store import LocalStore, inspected

SHARD = "train-000001.tar"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits at 8 px in train shards of 500, 500 and 437; the first look is done."""
    out = tmp_path_factory.mktemp("prepared") / "data"
    prepare(source="digits", resolution=8, out=out, shard_size_images=500)
    assert inspected(LocalStore(out), None) == {}
    return out


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def change(path: Path, offset: int, bytes_: bytes | None = None) -> None:
    """Overwrite bytes, or flip one bit; the time of change moves, as of any change."""
    data = bytearray(path.read_bytes())
    data[offset : offset + len(bytes_ or b"x")] = bytes_ or bytes([data[offset] ^ 1])
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))


def place(data: Path, i: int, kind: str) -> int:
    with tarfile.open(data / SHARD) as tar:
        return tar.getmembers()[3 * i + ("cls", "json", "png").index(kind)].offset


def flipped_pixel(data: Path) -> None:
    """One bit in the compressed pixels, which decodes without an error."""
    change(data / SHARD, place(data, 7, "png") + 512 + 60)


def no_png(data: Path) -> None:
    change(data / SHARD, place(data, 7, "png") + 512, b"no image")


def header(data: Path) -> None:
    change(data / SHARD, place(data, 7, "json"), os.urandom(512))


def header_without_index(data: Path) -> None:
    header(data)
    (data / f"{SHARD}.index.npz").unlink()


@pytest.mark.parametrize("damage", [flipped_pixel, no_png, header_without_index])
def test_a_damaged_sample_is_left_out(data: Path, damage: Callable[[Path], None]) -> None:
    whole = ShardDataset(data, "train")
    damage(data)
    skipped = inspected(LocalStore(data), None)  # 0.1 % of 1437
    assert skipped == {"train": {"train-00000507": 1}}
    assert left_out(skipped) == "1 train images (train-00000507)"
    dataset = ShardDataset(data, "train", skipped["train"])
    assert len(dataset) == 1436
    assert dataset.numbers.tolist() == [i for i in range(1437) if i != 507]
    assert dataset.of_shard(SHARD) == range(500, 999)
    assert [shard.name for shard in dataset.whole_shards] == [
        "train-000000.tar", "train-000002.tar",
    ]  # fmt: skip
    for index in (0, 506, 507, 1435):
        sample, number = dataset[index], int(dataset.numbers[index])
        assert sample["image"].equal(whole[number]["image"])
        assert sample["label"] == whole.labels[number]
        assert sample["index"] == index
        assert dataset.key(index) == f"train-{number:08d}"
    with pytest.raises(UserError, match=r"has damaged shards: train-00000507 \(.*\); copy them"):
        ShardDataset(data, "train")


def test_an_index_outlives_its_headers(data: Path) -> None:
    """With the index of the whole shard a damaged header costs no sample."""
    header(data)
    assert inspected(LocalStore(data), 0) == {}
    assert len(ShardDataset(data, "train", {})) == 1437


def truncated(data: Path) -> None:
    os.truncate(data / SHARD, (data / SHARD).stat().st_size // 2)


def missing(data: Path) -> None:
    (data / SHARD).unlink()


def zeros(data: Path) -> None:
    (data / SHARD).write_bytes(bytes((data / SHARD).stat().st_size))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncated, r"\d+ bytes, not the \d+ of the manifest"),
        (missing, "missing"),
        (zeros, "no sample of it can be read"),
    ],
)
def test_a_lost_shard_stops_above_the_limit(
    data: Path, damage: Callable[[Path], None], why: str
) -> None:
    damage(data)
    with pytest.raises(UserError, match=rf"500 unusable of 1437 train .* the 1 allowed: {SHARD} \("
                       rf"{why}\); .*--max-bad") as caught:  # fmt: skip
        inspected(LocalStore(data), None)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="more than the 499 allowed"):
        inspected(LocalStore(data), 499)
    skipped = inspected(LocalStore(data), 500)
    assert skipped == {"train": {SHARD: 500}}
    dataset = ShardDataset(data, "train", skipped["train"])
    assert len(dataset) == 937
    assert dataset.numbers.tolist() == [*range(500), *range(1000, 1437)]
    assert len(ShardDataset(data, "val")) == 360


def test_all_damage_is_named(data: Path) -> None:
    (data / "train-000000.tar").unlink()
    flipped_pixel(data)
    (data / "val-000000.tar").unlink()
    with pytest.raises(UserError, match=r"501 unusable.*train-000000\.tar \(missing\), "
                       r"train-00000507 \(damaged"):  # fmt: skip
        inspected(LocalStore(data), None)
    with pytest.raises(UserError, match=r"'val' of .* has no usable images"):
        inspected(LocalStore(data), 1000)


def test_bytes_are_looked_at_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look costs no reading, until a file changes; a copy elsewhere is looked at."""
    flipped_pixel(data)
    found = inspected(LocalStore(data), None)
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return "another"

    monkeypatch.setattr("srdd_platform.core.files.sha256_file", count)
    assert inspected(LocalStore(data), None) == found
    assert hashed == []
    os.utime(data / "train-000002.tar", ns=(1, 1))
    inspected(LocalStore(data), None)
    assert hashed == ["train-000002.tar"]
    (data / INSPECTED).write_text("{half")
    inspected(LocalStore(data), None)
    assert len(hashed) == 1 + 4


def test_who_is_told_what_to_leave_out_looks_at_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srdd_platform.core.files.sha256_file", lambda path: pytest.fail("read"))
    (data / INSPECTED).unlink()
    assert len(ShardDataset(data, "train", {"train-00000003": 1, SHARD: 500})) == 936


def test_a_read_only_directory_works(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in [*data.glob("*.npz"), data / INSPECTED]:
        path.unlink()

    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("srdd_platform.core.files.write_bytes", refuse)
    assert len(ShardDataset(data, "train")) == 1437
    assert list(data.glob("*.npz")) == []


def test_an_unreadable_shard_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    (data / INSPECTED).unlink()
    monkeypatch.setattr("srdd_platform.core.files.sha256_file", refuse)
    with pytest.raises(UserError, match=r"train-000000\.tar \(Input/output error\)"):
        inspected(LocalStore(data), None)
