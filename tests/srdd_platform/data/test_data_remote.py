"""Shards elsewhere: copied whole and verified, resumed, and refused in one line. No network."""

import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow import fs

from srdd.errors import UserError
from srdd_platform.data import remote
from srdd_platform.data.dataset import ShardDataset
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.remote import fetch
from srdd_platform.data.shards import prepare


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that plays a bucket; ``digits`` in it has three shards."""
    root = tmp_path_factory.mktemp("bucket")
    prepare(source="digits", resolution=8, out=root / "digits", shard_size_images=900, workers=1)
    return root


def visible(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name != remote.LOCK}


def test_a_copy_is_the_original(bucket: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    uri = (bucket / "digits").as_uri()
    manifest = fetch(uri, tmp_path / "new" / "out", progress=lambda *now: seen.append(now))
    assert manifest == Manifest.load(bucket / "digits")
    assert visible(tmp_path / "new" / "out") == visible(bucket / "digits")
    total = sum(s.bytes for split in manifest.splits.values() for s in split.shards)
    assert len(seen) == 3
    assert seen[-1] == (total, total)
    assert len(ShardDataset(tmp_path / "new" / "out", "train")) == 1437


def test_another_filesystem(bucket: Path, tmp_path: Path) -> None:
    tree = fs.SubTreeFileSystem(str(bucket), fs.LocalFileSystem())
    assert fetch("digits/", tmp_path / "out", filesystem=tree).splits["val"].num == 360
    memory = fs._MockFileSystem()
    memory.create_dir("bucket/set")
    for path in (bucket / "digits").iterdir():
        with memory.open_output_stream(f"bucket/set/{path.name}") as file:
            file.write(path.read_bytes())
    fetch("bucket/set", tmp_path / "again", filesystem=memory)
    assert visible(tmp_path / "again") == visible(bucket / "digits")


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the shards that are copied, by name."""
    counts: Counter[str] = Counter()
    copy = remote.RemoteShards.copy

    def count(place, shard, *arguments) -> None:
        counts[shard.name] += 1
        copy(place, shard, *arguments)

    monkeypatch.setattr(remote.RemoteShards, "copy", count)
    return counts


def test_a_stopped_copy_goes_on(bucket: Path, tmp_path: Path, copied: Counter[str]) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    out, uri = tmp_path / "out", (bucket / "digits").as_uri()
    with pytest.raises(KeyboardInterrupt):
        fetch(uri, out, workers=1, progress=stop)
    assert not (out / "manifest.json").exists()  # no command takes it for a shard directory
    whole = [name for name in visible(out) if (bucket / "digits" / name).exists()]
    assert 1 <= len(whole) < 3
    assert not [name for name in visible(out) if name.startswith(".")]
    (out / "train-000000.tar.index.npz").write_bytes(b"of an earlier reader")
    copied.clear()
    fetch(uri, out)
    assert sorted(copied) == sorted(
        {"train-000000.tar", "train-000001.tar", "val-000000.tar"} - set(whole)
    )
    copied.clear()
    damaged = out / "train-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    fetch(uri, out)
    assert copied == {"train-000001.tar": 1}
    assert visible(out) == visible(bucket / "digits")


def test_of_several_processes_one_copies(
    bucket: Path, tmp_path: Path, copied: Counter[str]
) -> None:
    uri = (bucket / "digits").as_uri()
    with ThreadPoolExecutor(4) as pool:  # a file lock holds between threads as between processes
        found = list(pool.map(lambda _: fetch(uri, tmp_path / "out", workers=2), range(4)))
    assert len(set(map(id, found))) == 4
    assert set(copied.values()) == {1}
    assert visible(tmp_path / "out") == visible(bucket / "digits")


def test_a_damaged_shard_is_named_and_not_kept(bucket: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, data in visible(bucket / "digits").items():
        (source / name).write_bytes(data)
    shard = source / "val-000000.tar"
    whole = shard.read_bytes()
    for bad in (whole[:-1] + b"x", whole[:-512], whole + b"x"):
        shard.write_bytes(bad)
        with pytest.raises(UserError, match=r"val-000000\.tar is damaged: its SHA-256"):
            fetch(source.as_uri(), tmp_path / "out", workers=1)
        assert not (tmp_path / "out" / "val-000000.tar").exists()
        assert not (tmp_path / "out" / "manifest.json").exists()
    shard.unlink()
    with pytest.raises(UserError, match=r"cannot read file://.*/val-000000\.tar: "):
        fetch(source.as_uri(), tmp_path / "out")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///nowhere/at/all", r"cannot read file:///nowhere/at/all/manifest\.json: "),
        ("nonsense://bucket/x", "--uri nonsense://bucket/x: the scheme nonsense is not known"),
        ("photos", r"cannot read /.*/photos/manifest\.json: "),
        ("s3://", "--uri s3://: '' is not the name of a bucket"),
        ("odd://me:secret@host/x", "--uri has credentials in it"),
    ],
)
def test_an_unreadable_location_is_one_line(tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch(uri, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_location_without_shards(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for text, message in (("{", "not valid JSON"), ('{"format": "x"}', "has format 'x'")):
        (tmp_path / "in" / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=message):
            fetch((tmp_path / "in").as_uri(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_may_not_lie_outside(bucket: Path, tmp_path: Path) -> None:
    value = json.loads((bucket / "digits" / "manifest.json").read_text())
    value["splits"]["val"]["shards"][0]["name"] = "../evil.tar"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="lies outside the directory"):
        fetch((tmp_path / "in").as_uri(), tmp_path / "out")


def test_files_of_the_user_are_never_touched(bucket: Path, tmp_path: Path) -> None:
    uri = (bucket / "digits").as_uri()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    with pytest.raises(UserError, match=r"mine holds thesis\.tex, which is no shard"):
        fetch(uri, tmp_path / "mine")
    with pytest.raises(UserError, match=r"thesis\.tex is a file"):
        fetch(uri, tmp_path / "mine" / "thesis.tex")
    prepare(source="digits", resolution=8, out=tmp_path / "other", seed=1, workers=1)
    before = visible(tmp_path / "other")
    with pytest.raises(UserError, match="other holds other shards"):
        fetch(uri, tmp_path / "other")
    assert visible(tmp_path / "other") == before
    assert visible(tmp_path / "mine") == {"thesis.tex": b"words"}


def test_a_small_disk_is_refused_before_copying(
    bucket: Path, tmp_path: Path, copied: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"has 0\.0 GB free, .* needs 0\.0"):
        fetch((bucket / "digits").as_uri(), tmp_path / "out")
    assert not copied


def test_the_command(bucket: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from srdd_platform.cli.data import DataFetch

    printed = io.StringIO()
    DataFetch(uri=(bucket / "digits").as_uri(), out=tmp_path / "out").run(Console(file=printed))
    assert "1797 images, verified" in printed.getvalue()
