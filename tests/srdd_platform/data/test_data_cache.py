"""Shards at a URI: the same bytes from near and from afar, a bounded cache, one line of error."""

import functools
import os
import pickle
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from filelock import FileLock
from moto.server import ThreadedMotoServer
from PIL import Image

from srdd.errors import UserError
from srdd.train.config import OptimConfig
from srdd.train.task import Batch
from srdd.train.workers import Alone, Reduce
from srdd_platform.core.file_errors import StoreError, explain
from srdd_platform.core.storage import answered
from srdd_platform.data import cache
from srdd_platform.data.cache import CachedStore, make_room
from srdd_platform.data.dataset import ShardDataset, load_images
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.shards import prepare
from srdd_platform.data.store import LocalStore, inspected, open_store
from srdd_platform.train.batches import batches
from srdd_platform.train.data import open_data
from srdd_platform.train.job import Job, Runtime
from srdd_platform.train.kind import Settings
from srdd_platform.train.kinds import KINDS

GB = 1e-9  # bytes, as the option takes them


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that plays a bucket: 40 images of 8 px, 32 to train on in shards of 5."""
    root = tmp_path_factory.mktemp("bucket")
    draw = np.random.default_rng(0)
    for name in "ab":
        (root / "tree" / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "tree" / name / f"{i}.png")
    prepare(source="folder", path=root / "tree", resolution=8, out=root / "set",
            shard_size_images=5, workers=1)  # fmt: skip
    return root / "set"


@pytest.fixture
def remote(bucket: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(bucket, tmp_path / "remote"))


def opened(remote: Path, tmp_path: Path, gb: float = 1.0) -> CachedStore:
    store = open_store(remote.as_uri(), tmp_path / "cache", gb)
    assert isinstance(store, CachedStore)
    return store


def here(store: CachedStore) -> list[str]:
    return sorted(path.name for path in store.directory.glob("*.tar"))


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is read from afar, by shard."""
    counts: Counter[str] = Counter()
    far = CachedStore._far

    def count(store: CachedStore, request: tuple[str, int, int]) -> bytes:
        counts[request[0]] += 1
        return far(store, request)

    monkeypatch.setattr(CachedStore, "_far", count)
    return counts


def test_the_same_images_from_afar_and_from_here(
    bucket: Path, tmp_path: Path, ranges: Counter[str]
) -> None:
    expected, labels = load_images(ShardDataset(LocalStore(bucket), "train"))
    store = opened(bucket, tmp_path)
    assert inspected(store, 0) == {}
    assert here(store) == []
    dataset = ShardDataset(store, "train", {})
    images, found = load_images(dataset)
    assert torch.equal(images, expected)
    assert torch.equal(found, labels)
    assert sum(ranges.values()) == 32
    shards = dataset.whole_shards
    assert store.bring(shards[1:4], threading.Event()) == 3
    assert here(store) == [shard.name for shard in shards[1:4]]
    ranges.clear()
    assert torch.equal(load_images(dataset)[0], expected)
    assert sum(ranges.values()) == 32 - 15
    assert not {shard.name for shard in shards[1:4]} & set(ranges)
    for shard in shards[1:4]:
        assert (store.directory / shard.name).read_bytes() == (bucket / shard.name).read_bytes()


def test_a_thread_brings_whole_shards(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: Counter[str]
) -> None:
    all_here = threading.Event()
    bring = CachedStore.bring

    def report(store: CachedStore, *arguments) -> int:
        brought = bring(store, *arguments)
        if len(here(store)) == 7:
            all_here.set()
        return brought

    monkeypatch.setattr(CachedStore, "bring", report)
    store = opened(bucket, tmp_path)
    dataset = ShardDataset(store, "train", {})
    with store.filling(dataset.whole_shards):
        assert all_here.wait(60)
        load_images(dataset)
    assert not ranges
    assert here(store) == [f"train-{i:06d}.tar" for i in range(7)]


def job(data: str, cache: Path, gb: float) -> Job:
    settings = Settings(
        model=None, optim=OptimConfig(steps=9, batch_size=7, seed=5),
        more={"augmentation": {"crop": False, "flip": True}},
    )  # fmt: skip
    runtime = Runtime(cache=str(cache), cache_gb=gb, loader_workers=2)
    kind = KINDS["tokenizer"]
    return Job(kind=kind, run="nowhere", data=data, settings=settings, runtime=runtime)


def batches_of(job: Job, reduce: Reduce, first: int) -> Iterator[Batch]:
    steps = range(first, job.steps)
    return batches(open_data(job), job.optim, reduce, steps, torch.device("cpu"))


def same(found: Iterator[Batch], expected: list[Batch]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(torch.equal(a[field], b[field]) for a, b in pairs for field in range(3))


def test_batches_do_not_depend_on_what_is_here(bucket: Path, tmp_path: Path) -> None:
    """Nothing, some or all shards; shards that go while they are read; and no cache at all."""
    largest = max(p.stat().st_size for p in bucket.glob("*.tar"))
    directory = tmp_path / "cache"
    expected = list(batches_of(job(str(bucket), directory, 1.0), Alone(), 0))
    assert len(expected) == 9
    for room in (1, 3, 100):
        trained = job(bucket.as_uri(), directory, room * largest * GB)
        for world in (1, 3):
            parts = [batches_of(trained, Alone(rank=r, world=world), 0) for r in range(world)]
            for number, slices in enumerate(zip(*parts, strict=True)):
                for rank, part in enumerate(slices):
                    assert torch.equal(part.inputs, expected[number].inputs[rank::world])
                for path in list(directory.glob("*/*.tar"))[:1]:
                    path.unlink(missing_ok=True)
    assert same(batches_of(trained, Alone(), 4), expected[4:])


def test_the_bound_holds_and_the_least_used_goes_first(tmp_path: Path) -> None:
    paths = [tmp_path / f"set{i}" / f"train-{i:06d}.tar" for i in range(4)]
    for i, path in enumerate(paths):
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - i, 1000 - i))  # the last was used longest ago
    left = paths[0].parent / ".train-000009.tar.0a1b2c3d.tmp"
    left.write_bytes(bytes(70))
    index = paths[0].parent / ".train-000009.tar.index.npz.0a1b2c3d.tmp"
    index.write_bytes(b"of another process, which writes it now")
    later = 1000 + cache.IN_USE_S + 1
    assert make_room(tmp_path, 100, 500, later)
    assert [path.exists() for path in paths] == [True] * 4
    assert not left.exists()
    assert index.exists()
    assert make_room(tmp_path, 150, 450, later)
    assert [path.exists() for path in paths] == [True, True, True, False]
    assert make_room(tmp_path, 150, 350, later)
    assert [path.exists() for path in paths] == [True, True, False, False]
    os.utime(paths[0], (later, later))
    assert not make_room(tmp_path, 300, 350, later)  # what is in use stays
    assert [path.exists() for path in paths] == [True, False, False, False]


def test_a_full_cache_keeps_what_it_has(bucket: Path, tmp_path: Path) -> None:
    largest = max(path.stat().st_size for path in bucket.glob("*.tar"))
    store = opened(bucket, tmp_path, 2.5 * largest * GB)
    shards = ShardDataset(store, "train", {}).whole_shards
    assert store.bring(shards[:4], threading.Event()) == 2
    assert store.bring(shards[2:4], threading.Event()) == 0
    assert here(store) == [shard.name for shard in shards[:2]]
    old = store.directory / shards[0].name
    os.utime(old, (0, 0))
    assert store.bring(shards[2:4], threading.Event()) == 1
    assert here(store) == [shard.name for shard in shards[1:3]]


def test_reading_a_shard_keeps_it(bucket: Path, tmp_path: Path) -> None:
    store = opened(bucket, tmp_path)
    dataset = ShardDataset(store, "train", {})
    store.bring(dataset.whole_shards[:1], threading.Event())
    path = store.directory / "train-000000.tar"
    os.utime(path, (0, 0))
    dataset[0]
    assert path.stat().st_mtime > 1e9


def test_of_several_processes_each_shard_is_brought_once(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: Counter[str] = Counter()
    copy = cache.locate(bucket.as_uri()).copy.__func__

    def count(place, shard, *arguments) -> None:
        copied[shard.name] += 1
        copy(place, shard, *arguments)

    monkeypatch.setattr("srdd_platform.data.remote.RemoteShards.copy", count)
    stores = [opened(bucket, tmp_path) for _ in range(3)]
    shards = ShardDataset(stores[0], "train", {}).whole_shards
    with ThreadPoolExecutor(3) as pool:  # a file lock holds between threads as between processes
        brought = list(pool.map(lambda s: s.bring(shards, threading.Event()), stores))
    assert sorted(brought) == [0, 0, 7]
    assert set(copied.values()) == {1}


def test_who_waits_for_the_lock_can_be_stopped(bucket: Path, tmp_path: Path) -> None:
    store = opened(bucket, tmp_path)
    shards = ShardDataset(store, "train", {}).whole_shards
    with FileLock(tmp_path / "cache" / ".lock"), store.filling(shards):
        pass
    assert here(store) == []


def damage(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_shard_that_is_missing_there_is_counted(remote: Path, tmp_path: Path) -> None:
    (remote / "train-000002.tar").unlink()
    os.truncate(remote / "train-000004.tar", 1024)
    lost = r"train-000002\.tar \(missing\), train-000004\.tar \(1024 bytes"
    with pytest.raises(UserError, match=rf"file://.* has 10 unusable of 32 train .* {lost}"):
        inspected(opened(remote, tmp_path), None)
    skipped = inspected(opened(remote, tmp_path), 10)
    assert skipped == {"train": {"train-000002.tar": 5, "train-000004.tar": 5}}
    assert len(ShardDataset(opened(remote, tmp_path), "train", skipped["train"])) == 22


def test_bytes_that_are_damaged_there_stop_the_reader(remote: Path, tmp_path: Path) -> None:
    """Never a wrong pixel: from afar by the image's checksums, from here by the shard's."""
    store = opened(remote, tmp_path)
    dataset = ShardDataset(store, "train", {})
    shard, offset = "train-000001.tar", int(dataset._places[7, 1])
    damage(remote / shard, offset + 60)
    with pytest.raises(UserError, match=r"remote/train-000001\.tar is damaged: .* at byte"):
        dataset[7]
    assert dataset[6]["index"] == 6
    with pytest.raises(UserError, match=r"train-000001\.tar is damaged: its SHA-256"):
        store.bring(dataset.whole_shards, threading.Event())
    assert shard not in here(store)

    def read_for_ever() -> None:
        with store.filling(dataset.whole_shards):
            while True:
                dataset[0]

    with pytest.raises(UserError, match="its SHA-256"):
        read_for_ever()


def test_a_store_that_fails_later_is_named_with_its_own_reason(
    remote: Path, tmp_path: Path
) -> None:
    """It is no fault of this machine's disk, and another try may succeed."""
    dataset = ShardDataset(opened(remote, tmp_path), "train", {})
    (remote / "train-000001.tar").unlink()
    with pytest.raises(StoreError) as caught:
        dataset[7]
    assert explain(pickle.loads(pickle.dumps(caught.value))) == (
        f"cannot read {remote.as_uri()}/train-000001.tar: it does not exist"
    )


def test_shards_without_an_index_are_looked_at(remote: Path, tmp_path: Path) -> None:
    """As those that were prepared before: their bytes come once, and are inspected."""
    for path in remote.glob("*.npz"):
        path.unlink()
    dataset = ShardDataset(LocalStore(remote), "train", {})
    place = int(dataset._places[7, 1])
    damage(remote / "train-000001.tar", place + 60)
    store = opened(remote, tmp_path)
    skipped = inspected(store, None)
    assert skipped == {"train": {"train-00000007": 1}}
    assert sorted(path.name for path in store.directory.glob("train-*.npz")) == [
        f"train-{i:06d}.tar.index.npz" for i in range(7) if i != 1
    ]
    assert not list((tmp_path / "cache").glob(".look*"))
    again = ShardDataset(opened(remote, tmp_path), "train", skipped["train"])
    assert len(again) == 31
    assert again.labels.tolist() == np.delete(dataset.labels, 7).tolist()
    assert "train-000001.tar" not in [shard.name for shard in again.whole_shards]


def test_other_data_at_the_same_uri_is_other_data(
    remote: Path, bucket: Path, tmp_path: Path
) -> None:
    first = opened(remote, tmp_path)
    assert first.bring(ShardDataset(first, "val", {}).whole_shards, threading.Event()) == 2
    shutil.rmtree(remote)
    prepare(source="folder", path=bucket.parent / "tree", resolution=8, out=remote, seed=1)
    second = opened(remote, tmp_path)
    assert second.directory != first.directory
    assert here(second) == []
    assert len(ShardDataset(second, "val", {})) == 8


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///nowhere/at/all", r"cannot read file:///nowhere/at/all/manifest\.json: "),
        ("nonsense://bucket/x", "--data nonsense://bucket/x: the scheme nonsense is not known"),
        ("s3://me:secret@bucket/x", "--data has credentials in it, .* by the environment"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_store(uri, tmp_path / "cache", 1.0)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_location_that_does_not_answer(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()
    brief = functools.partial(answered, limit_s=0.05)
    monkeypatch.setattr("srdd_platform.core.storage.answered", brief)
    monkeypatch.setattr("srdd_platform.data.remote.fs.FileSystem", type("Hangs", (), {
        "from_uri": staticmethod(lambda uri: hang.wait(60)),
    }))  # fmt: skip
    with pytest.raises(UserError, match=r"cannot read s3://bucket/x: no answer in 0\.05 s"):
        open_store("s3://bucket/x", tmp_path / "cache", 1.0)
    hang.set()


def test_a_cache_that_is_of_no_use_is_refused(bucket: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a cache of 1e-07 GB holds none: raise --cache-gb"):
        opened(bucket, tmp_path, 1e-7)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--cache .*file: (Not a directory|File exists)"):
        open_store(bucket.as_uri(), tmp_path / "file", 1.0)


@pytest.fixture(scope="module")
def s3(bucket: Path) -> Iterator[str]:
    """A server that speaks S3 on the loopback interface, with the shards in ``data-bucket/set``."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "hidden",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="data-bucket")
        for path in bucket.iterdir():
            client.upload_file(str(path), "data-bucket", f"set/{path.name}")
        yield "s3://data-bucket"
    server.stop()


def test_s3(s3: str, bucket: Path, tmp_path: Path, ranges: Counter[str]) -> None:
    expected = list(batches_of(job(str(bucket), tmp_path, 1.0), Alone(), 0))
    assert same(batches_of(job(f"{s3}/set", tmp_path / "cache", 1.0), Alone(), 0), expected)
    store = open_store(f"{s3}/set/", tmp_path / "other", 1.0)
    assert isinstance(store, CachedStore)
    assert inspected(store, 0) == {}
    assert store.manifest == Manifest.load(bucket)
    ranges.clear()
    dataset = ShardDataset(store, "val", {})
    assert torch.equal(load_images(dataset)[0], load_images(ShardDataset(bucket, "val"))[0])
    assert sum(ranges.values()) == 8
    store.bring(dataset.whole_shards, threading.Event())
    ranges.clear()
    load_images(dataset)
    assert not ranges


@pytest.mark.parametrize("place", ["nobody-has-this/set", "data-bucket/empty"])
def test_what_s3_does_not_have_is_one_line(s3: str, tmp_path: Path, place: str) -> None:
    with pytest.raises(UserError, match=rf"cannot read s3://{place}/manifest\.json: ") as caught:
        open_store(f"s3://{place}", tmp_path / "cache", 1.0)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
