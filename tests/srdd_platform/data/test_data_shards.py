"""Preparing shards: what is written, that it is whole or absent, and what is refused."""

import errno
import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from srdd.errors import UserError
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.shards import prepare


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of 20 noise images, 8x8."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / name / f"v1.{i:02d}.png")
    return tmp_path / "tree"


def sizes(manifest: Manifest) -> dict[str, list[int]]:
    return {name: [shard.num for shard in split.shards] for name, split in manifest.splits.items()}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_digits(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = prepare(
        source="digits",
        resolution=8,
        out=tmp_path / "d",
        shard_size_images=500,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert sizes(manifest) == {"train": [500, 500, 437], "val": [360]}
    assert manifest.classes == tuple("0123456789")
    assert sum(manifest.splits["val"].per_class.values()) == 360
    # 178 zeros in all: a fifth, rounded either way
    assert manifest.splits["train"].per_class["0"] + manifest.splits["val"].per_class["0"] == 178
    assert manifest.splits["val"].per_class["0"] in (35, 36)
    assert seen == [(done, 1797) for done in range(1, 1798)]
    assert Manifest.load(tmp_path / "d") == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_a_sample_is_class_origin_and_png(tree: Path, tmp_path: Path) -> None:
    prepare(source="folder", path=tree, resolution=8, out=tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "val-000000.tar") as tar:
        members = tar.getmembers()
        data = {member.name: tar.extractfile(member).read() for member in members}
    assert {member.mtime for member in members} == {0}
    assert [member.name for member in members[:3]] == [
        f"val-00000000.{kind}" for kind in ("cls", "json", "png")
    ]
    about = json.loads(data["val-00000000.json"])
    assert about["class_name"] == ["cat", "dog"][int(data["val-00000000.cls"])]
    original = np.asarray(Image.open(tree / about["origin"]))
    (tmp_path / "x.png").write_bytes(data["val-00000000.png"])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), original)


def test_the_manifest_file(tree: Path, tmp_path: Path) -> None:
    manifest = prepare(
        source="folder", path=tree, resolution=8, out=tmp_path / "out", shard_size_images=20
    )
    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert stored["format"] == "srdd-shards-1"
    assert (stored["source"], stored["resolution"]) == ("folder", 8)
    assert stored["classes"] == ["cat", "dog"]
    assert stored["skipped"] == []
    assert stored["splits"]["train"]["num"] == 32
    assert stored["splits"]["train"]["per_class"] == {"cat": 16, "dog": 16}
    assert [shard["num"] for shard in stored["splits"]["train"]["shards"]] == [20, 12]
    for shard in stored["splits"]["train"]["shards"]:
        data = (tmp_path / "out" / shard["name"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
        assert shard["bytes"] == len(data)
    for name, data in contents(tmp_path / "out").items():
        assert str(tmp_path).encode() not in data, name
    assert len(manifest.fingerprint) == 16


def test_the_same_input_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    first = prepare(source="folder", path=tree, resolution=6, out=tmp_path / "a", workers=1)
    tree.rename(moved)
    second = prepare(source="folder", path=moved, resolution=6, out=tmp_path / "b", workers=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert first.fingerprint == second.fingerprint
    other = prepare(source="folder", path=moved, resolution=6, out=tmp_path / "c", seed=1)
    assert other.fingerprint != first.fingerprint


def test_given_again_it_does_no_work(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(source="folder", path=tree, resolution=8, out=out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    calls: list[int] = []
    again = prepare(
        source="folder", path=tree, resolution=8, out=out, progress=lambda *_: calls.append(1)
    )
    assert again == first
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_other_settings_are_refused_with_the_difference(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(source="folder", path=tree, resolution=8, out=out)
    before = contents(out)
    with pytest.raises(UserError, match=r"resolution 8 \(asked for 4\), seed 0 \(asked for 3\)"):
        prepare(source="folder", path=tree, resolution=4, out=out, seed=3, shard_size_images=10_000)
    with pytest.raises(UserError, match=r"source folder \(asked for digits\)"):
        prepare(source="digits", resolution=8, out=out)
    (tree / "cat" / "v1.00.png").unlink()
    with pytest.raises(UserError, match="other source files"):
        prepare(source="folder", path=tree, resolution=8, out=out)
    assert contents(out) == before


def test_files_of_the_user_are_never_touched(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="mine is not empty and holds no shards"):
        prepare(source="folder", path=tree, resolution=8, out=out)
    assert contents(out) == {"thesis.tex": b"years of work"}
    with pytest.raises(UserError, match=r"thesis\.tex is a file"):
        prepare(source="folder", path=tree, resolution=8, out=out / "thesis.tex")
    with pytest.raises(UserError, match="lies inside the source"):
        prepare(source="folder", path=tree, resolution=8, out=tree / "shards")


def test_a_file_that_appears_meanwhile_is_kept(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def meddle(done: int, total: int) -> None:
        if done == total:
            out.mkdir()
            (out / "new.txt").write_text("just saved")

    with pytest.raises(UserError, match="is not empty"):
        prepare(source="folder", path=tree, resolution=8, out=out, progress=meddle)
    assert contents(out) == {"new.txt": b"just saved"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tree"]


def test_the_second_of_two_runs_takes_the_first_ones_work(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    times: list[int] = []

    def other_run(done: int, total: int) -> None:
        if done == total:
            prepare(source="folder", path=tree, resolution=8, out=out)
            times.append((out / "manifest.json").stat().st_mtime_ns)

    late = prepare(source="folder", path=tree, resolution=8, out=out, progress=other_run)
    assert late == Manifest.load(out)
    assert times == [(out / "manifest.json").stat().st_mtime_ns]


@pytest.mark.parametrize("out", ["out", "link", "."])
def test_an_empty_directory_is_filled(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path / "out" if out == "." else tmp_path)
    prepare(source="folder", path=tree, resolution=8, out=Path(out))
    assert Manifest.load(tmp_path / "out").splits["train"].num == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out", "tree"]


def test_a_damaged_image_is_skipped_and_named(tree: Path, tmp_path: Path) -> None:
    clean = prepare(source="folder", path=tree, resolution=8, out=tmp_path / "clean")
    (tree / "dog" / "v1.03.png").write_bytes(b"\x89PNG nonsense")
    manifest = prepare(source="folder", path=tree, resolution=8, out=tmp_path / "out")
    assert [(one.origin, one.reason) for one in manifest.skipped] == [
        ("dog/v1.03.png", "not an image of a known format")
    ]
    assert sum(split.num for split in manifest.splits.values()) == 39
    assert sum(split.per_class["dog"] for split in manifest.splits.values()) == 19
    assert manifest.fingerprint != clean.fingerprint
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        keys = sorted({member.name.split(".")[0] for member in tar.getmembers()})
    num = manifest.splits["train"].num
    assert keys == [f"train-{i:08d}" for i in range(num)]  # no gap where it was


def test_too_many_damaged_images_stop_it(tree: Path, tmp_path: Path) -> None:
    for i in range(3):
        (tree / "cat" / f"v1.{i:02d}.png").write_bytes(b"")
    pattern = r"more than 2 images cannot be read.*first: cat/v1\.0\d\.png: not an image.*; cat"
    with pytest.raises(UserError, match=pattern):
        prepare(source="folder", path=tree, resolution=8, out=tmp_path / "out", max_bad=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]
    manifest = prepare(source="folder", path=tree, resolution=8, out=tmp_path / "out", max_bad=3)
    assert len(manifest.skipped) == 3


def test_ten_damaged_images_are_the_default_limit(tree: Path, tmp_path: Path) -> None:
    for i in range(10):
        (tree / "cat" / f"v1.{i:02d}.png").write_bytes(b"")
    manifest = prepare(source="folder", path=tree, resolution=8, out=tmp_path / "ten")
    assert len(manifest.skipped) == 10
    (tree / "cat" / "v1.10.png").write_bytes(b"")
    with pytest.raises(UserError, match="more than 10 images"):
        prepare(source="folder", path=tree, resolution=8, out=tmp_path / "eleven")


def test_a_class_without_a_readable_image_is_named(tree: Path, tmp_path: Path) -> None:
    (tree / "eel").mkdir()
    (tree / "eel" / "0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="class 'eel' has no readable training image"):
        prepare(source="folder", path=tree, resolution=8, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"resolution": 0}, "resolution"),
        ({"seed": -1}, "seed"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"shard_size_images": 0}, "shard_size_images"),
        ({"max_bad": -1}, "max_bad"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, wrong: dict, text: str) -> None:
    with pytest.raises(UserError, match=text):
        prepare(**{"source": "digits", "resolution": 8, "out": tmp_path / "out", **wrong})


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from srdd.errors import UserError
from srdd_platform.data.shards import prepare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    prepare(source="digits", resolution=8, out=Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [300, 200_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "out", str(limit)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert run.stdout == (
        f"cannot write {tmp_path / 'out'}: File too large; nothing was kept, free the space or "
        "choose another directory\n"
    )
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_no_matter_of_space(tree: Path) -> None:
    out = tree / "cat" / "v1.00.png" / "out"
    with pytest.raises(UserError) as caught:
        prepare(source="digits", resolution=8, out=out)
    assert str(caught.value) == (
        f"cannot write {out}: File exists; nothing was kept, choose another directory"
    )


def test_a_folder_that_cannot_be_read_is_named_with_what_to_do(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scandir(path: Path) -> Any:  # root reads every folder
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("srdd_platform.data.tree.os.scandir", scandir)
    with pytest.raises(UserError, match=r"^cannot read .*tree: permission denied: check its owner"):
        prepare(source="folder", path=tree, resolution=8, out=tmp_path / "out")


def test_an_interrupt_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source="folder", path=tree, resolution=8, out=tmp_path / "out", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]
