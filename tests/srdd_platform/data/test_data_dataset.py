"""Reading shards: pixels, processes, and batches that do not depend on the number of ranks."""

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from srdd.errors import UserError
from srdd_platform.data.dataset import (
    GlobalBatchSampler,
    ShardDataset,
    global_indices,
    load_arrays,
    steps_per_epoch,
)
from srdd_platform.data.shards import prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits at 8 px in train shards of 500, 500 and 437, in a directory of an awkward name."""
    out = tmp_path_factory.mktemp("data") / "50% {a,b} x:y"
    prepare(source="digits", resolution=8, out=out, shard_size_images=500)
    return out


def batches(world: int, **options: int | bool) -> list[list[list[int]]]:
    """By step, then by rank."""
    by_rank = [list(GlobalBatchSampler(rank=rank, world=world, **options)) for rank in range(world)]
    return [list(step) for step in zip(*by_rank, strict=True)]


def as_multiset(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    return sorted(
        image.tobytes() + bytes([label]) for image, label in zip(images, labels, strict=True)
    )


def test_pixels_and_labels_are_those_of_the_source(data: Path) -> None:
    bunch = load_digits()
    expected = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)
    images, labels = (
        torch.cat(parts)
        for parts in zip(*(load_arrays(data, s) for s in ("train", "val")), strict=True)
    )
    assert images.shape == (1797, 3, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(images[:, 0], images[:, 2])
    assert as_multiset(images[:, 1].numpy(), labels.numpy()) == as_multiset(expected, bunch.target)


def test_a_sample(data: Path) -> None:
    dataset = ShardDataset(data, "train")
    images, labels = load_arrays(data, "train")
    for i in (0, 499, 500, 1000, 1436):  # both sides of each shard's edge
        sample = dataset[i]
        assert torch.equal(sample["image"], images[i])
        assert (sample["label"], sample["index"]) == (labels[i], i)
    assert dataset[-1]["index"] == 1436
    with pytest.raises(IndexError):
        dataset[1437]
    assert dataset.key(1436) == "train-00001436"
    assert [dataset.of_shard(f"train-{i:06d}.tar") for i in range(3)] == [
        range(500),
        range(500, 1000),
        range(1000, 1437),
    ]
    assert (dataset.classes, dataset.resolution) == (tuple("0123456789"), 8)


def test_shards_are_not_sorted_by_class(data: Path) -> None:
    assert set(ShardDataset(data, "train").labels[:100]) == set(range(10))


def test_it_survives_pickle_and_fork(data: Path) -> None:
    dataset = ShardDataset(data, "train")
    expected = dataset[700]["image"]  # its shard is open now
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[700]["image"], expected)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        read = pool.map(dataset.__getitem__, [700, 3, 700])
    assert [torch.equal(sample["image"], expected) for sample in read] == [True, False, True]
    assert torch.equal(dataset[700]["image"], expected)


def test_files_are_closed_with_the_dataset(data: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    dataset = ShardDataset(data, "train")
    for i in (0, 600, 1200, 1):
        dataset[i]
    del dataset
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert after == before


def test_more_shards_than_open_files(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ShardDataset(data, "train")[700]["image"]
    monkeypatch.setattr("srdd_platform.data.store.MAX_OPEN", 2)
    dataset = ShardDataset(data, "train")
    assert torch.equal(dataset[700]["image"], expected)
    assert torch.equal(dataset[700]["image"], expected)
    assert dataset.store._files == {}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_the_samplers_batches(data: Path, num_workers: int) -> None:
    dataset = ShardDataset(data, "val")
    sampler = GlobalBatchSampler(len(dataset), 100, seed=3)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers)
    images, labels = load_arrays(data, "val")
    seen = list(loader)
    assert len(seen) == len(loader) == 3
    for step, batch in enumerate(seen):
        _, indices = global_indices(3, step, 360, 100)
        assert batch["index"].tolist() == indices.tolist()
        assert torch.equal(batch["image"], images[indices])
        assert torch.equal(batch["label"], labels[indices])


def test_more_ranks_than_shards(data: Path) -> None:
    dataset = ShardDataset(data, "val")  # one shard, five ranks
    seen: list[int] = []
    for rank in range(5):
        sampler = GlobalBatchSampler(len(dataset), 40, seed=0, rank=rank, world=5)
        for batch in DataLoader(dataset, batch_sampler=sampler):
            assert len(batch["index"]) == 8
            seen += batch["index"].tolist()
    assert sorted(seen) == list(range(360))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_sample_once_an_epoch(world: int, drop_last: bool) -> None:
    steps = batches(world, n=103, batch=10, seed=5, drop_last=drop_last)
    alone = batches(1, n=103, batch=10, seed=5, drop_last=drop_last)
    seen = [index for step in steps for rank in step for index in rank]
    assert len(seen) == len(set(seen))
    # the last batch has 3 samples: too few for more than 3 ranks
    assert len(seen) == (103 if not drop_last and world <= 3 else 100)
    for number, step in enumerate(steps):
        assert all(step), "a rank without a sample would hang the others"
        (whole,) = alone[number]
        assert [step[i % world][i // world] for i in range(len(whole))] == whole


def test_epochs_and_seeds_differ_in_order() -> None:
    def epoch(seed: int, first_step: int) -> list[int]:
        return [
            i
            for batch in GlobalBatchSampler(60, 6, seed=seed, first_step=first_step)
            for i in batch
        ]

    orders = [epoch(0, 0), epoch(0, 10), epoch(1, 0)]
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert all(order != list(range(60)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert epoch(0, 10) == epoch(0, 10)


@pytest.mark.parametrize("first_step", [0, 1, 9, 10, 11, 25])
@pytest.mark.parametrize("world", [1, 3])
def test_resume_is_the_tail_of_the_whole_run(first_step: int, world: int) -> None:
    options = {"n": 103, "batch": 10, "seed": 5, "last_step": 30}
    whole = batches(world, **options)
    tail = batches(world, first_step=first_step, **options)
    assert len(whole) == 30
    assert tail == whole[first_step:]
    sampler = GlobalBatchSampler(first_step=first_step, **options)
    assert len(sampler) == len(tail)


@given(
    n=st.integers(1, 60),
    batch=st.integers(1, 20),
    world=st.integers(1, 8),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_global_batches(n: int, batch: int, world: int, drop_last: bool, epoch: int) -> None:
    steps = steps_per_epoch(n, batch, drop_last=drop_last, world=world)
    if batch < world or steps < 1:
        with pytest.raises(UserError):
            global_indices(0, 0, n, batch, drop_last=drop_last, world=world)
        return
    seen: list[int] = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        found, indices = global_indices(0, step, n, batch, drop_last=drop_last, world=world)
        assert found == epoch
        assert world <= len(indices) <= batch
        seen += indices.tolist()
    assert len(seen) == len(set(seen))
    assert n - len(seen) < (batch if drop_last else min(batch, world))


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(UserError, match="a batch of 64 is more than the 40 images"):
        GlobalBatchSampler(40, 64, seed=0)
    with pytest.raises(UserError, match="leaves some of 4 workers without a sample"):
        GlobalBatchSampler(40, 3, seed=0, world=4)


def test_indices_may_be_changed_by_the_caller() -> None:
    first = global_indices(0, 0, 20, 5)[1]
    kept = first.copy()
    first[:] = 0
    assert global_indices(0, 0, 20, 5)[1].tolist() == kept.tolist()


def test_a_damaged_image_is_named_when_read(tmp_path: Path) -> None:
    prepare(source="digits", resolution=8, out=tmp_path / "d")
    path = tmp_path / "d" / "val-000000.tar"
    dataset = ShardDataset(tmp_path / "d", "val")
    with path.open("r+b") as file:
        file.seek(int(dataset._places[5, 1]))
        file.write(b"not a png")
    with pytest.raises(UserError, match=r"val-00000005 in .*val-000000\.tar is damaged"):
        dataset[5]
    assert dataset[6]["image"].shape == (3, 8, 8)
