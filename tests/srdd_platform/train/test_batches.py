"""What a worker trains on: the same global batches for any workers, threads and resuming."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from srdd.errors import UserError
from srdd.presets import digits
from srdd.train.config import OptimConfig
from srdd.train.task import Batch
from srdd.train.workers import Alone
from srdd_platform.core.files import write_json
from srdd_platform.data.ahead import read_ahead
from srdd_platform.data.augment import Augmentation
from srdd_platform.data.codes import FORMAT, choose_views
from srdd_platform.data.dataset import ShardDataset, global_indices
from srdd_platform.data.shards import prepare
from srdd_platform.train.batches import batches
from srdd_platform.train.data import open_data
from srdd_platform.train.job import Job, make_job
from srdd_platform.train.kind import Inputs, Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.options import Options, TransformerOptions

CPU = torch.device("cpu")
NUM, BATCH, STEPS = 16, 7, 5  # two batches an epoch, of seven


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of 12 x 15 stored pixels that tell their place; 16 to train on, 4 shards."""
    root = tmp_path_factory.mktemp("kept")
    rows, columns = np.mgrid[:12, :15].astype(np.uint8)
    for name in "ab":
        (root / "tree" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.stack([rows, columns, np.full_like(rows, i)], axis=-1)
            Image.fromarray(pixels).save(root / "tree" / name / f"{i}.png")
    prepare(source="folder", path=root / "tree", resolution=8, out=root / "out", keep=1.5,
            shard_size_images=5, workers=1)  # fmt: skip
    return root / "out"


def job(data: Path, kind: str = "tokenizer", **options: object) -> Job:
    optim = OptimConfig(steps=STEPS, batch_size=BATCH, seed=3)
    settings = Settings(model=None, optim=optim, more=options)
    return Job(kind=KINDS[kind], run="nowhere", data=str(data), settings=settings)


def read_by(job: Job, threads: int) -> Job:
    return replace(job, runtime=replace(job.runtime, loader_workers=threads))


def merged(job: Job, world: int, first: int = 0) -> list[Batch]:
    """The global batches, put together from the slices of all ranks: rank r has every w-th."""
    data, steps = open_data(job), range(first, job.steps)
    places = [Alone(rank=rank, world=world) for rank in range(world)]
    ranks = [batches(data, job.optim, place, steps, CPU) for place in places]
    found = []
    for parts in zip(*ranks, strict=True):
        assert {part.global_size for part in parts} == {BATCH}
        whole = [torch.empty(0)] * BATCH
        for field in range(3):
            rows: list[torch.Tensor] = [torch.empty(0)] * BATCH
            for rank, part in enumerate(parts):
                rows[rank::world] = list(part[field])
            whole[field] = torch.stack(rows)
        found.append(Batch(whole[0], whole[1], whole[2], BATCH))
    return found


def equal(a: list[Batch], b: list[Batch]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(torch.equal(x[field], y[field]) for x, y in pairs for field in range(3))


@pytest.mark.parametrize("world", [2, 3, 4, 6])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_any_number_of_workers_sees_the_same_batches(data: Path, world: int, threads: int) -> None:
    """Seven images do not divide by two, three, four or six, and there are four shards."""
    varied = read_by(job(data, augmentation={"crop": True, "flip": True}), threads)
    alone = merged(read_by(varied, 0), 1)
    assert len(alone) == STEPS
    assert equal(merged(varied, world), alone)


def test_an_image_is_the_crop_of_its_epoch_and_number(data: Path) -> None:
    varied = Augmentation(crop=True, flip=True, seed=3)
    dataset = ShardDataset(data, "train")
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for step, batch in enumerate(merged(job(data, augmentation={"crop": True, "flip": True}), 1)):
        epoch, rows = global_indices(3, step, NUM, BATCH)
        assert batch.index_b.tolist() == rows.tolist()
        for index, image, label in zip(rows, batch.inputs, batch.labels_b, strict=True):
            expected = dataset.samples([int(index)], [varied.cut(epoch, int(index))])[0]
            assert torch.equal(image, expected["image"])
            assert label == expected["label"]
            seen[epoch, int(index)] = image
    again = [i for epoch, i in seen if epoch == 1 and (0, i) in seen]
    assert sum(not torch.equal(seen[0, i], seen[1, i]) for i in again) > len(again) / 2


def test_without_augmentation_the_centre_is_trained_on(data: Path) -> None:
    for batch in merged(job(data), 2):
        assert (batch.inputs[:, 0, 0, 0] == 2).all()
        assert (batch.inputs[:, 1, 0, 0] == 4).all()


@pytest.mark.parametrize("first", [1, 2, 4])
@pytest.mark.parametrize("world", [1, 3])
def test_a_run_goes_on_at_the_same_sample(data: Path, world: int, first: int) -> None:
    varied = job(data, augmentation={"crop": True, "flip": False})
    assert equal(merged(varied, world, first), merged(varied, world)[first:])


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """Sixteen images in two shards, three views each; a code tells image, view and position."""
    image, view, place = torch.meshgrid(*map(torch.arange, (NUM, 3, 5)), indexing="ij")
    codes_nVL = (100 * image + 10 * view + place).to(torch.uint16)
    labels_n = torch.arange(NUM, dtype=torch.int32) % 4
    for name, rows in (("0", slice(0, 9)), ("1", slice(9, NUM))):
        part = {"codes": codes_nVL[rows].clone(), "labels": labels_n[rows].clone()}
        save_file(part, tmp_path / f"{name}.safetensors")
    content = {"num": NUM, "shards": ["0.safetensors", "1.safetensors"]}
    write_json(tmp_path / "manifest.json", {"format": FORMAT, "splits": {"train": content}})
    return tmp_path


def test_codes_of_the_epochs_views(data: Path, codes: Path) -> None:
    trained = replace(job(data, "transformer"), inputs=Inputs(codes=str(codes)))
    alone = merged(trained, 1)
    for world in (2, 3, 4):
        assert equal(merged(trained, world), alone)
    assert equal(merged(trained, 2, 3), alone[3:])
    for step, batch in enumerate(alone):
        epoch, rows = global_indices(3, step, NUM, BATCH)
        view_b = choose_views(3, epoch, rows.tolist(), 3)
        assert batch.inputs.dtype == torch.int64
        assert batch.inputs[:, 0].tolist() == (100 * torch.from_numpy(rows) + 10 * view_b).tolist()
        assert batch.labels_b.tolist() == (rows % 4).tolist()
        assert batch.index_b.tolist() == rows.tolist()
    shown = {int(code) % 100 // 10 for batch in alone for code in batch.inputs[:, 0]}
    assert shown == {0, 1, 2}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_reading_ahead_keeps_the_order_and_is_bounded(threads: int) -> None:
    begun: list[int] = []
    gates = [threading.Event() for _ in range(40)]

    def work(task: int) -> int:
        begun.append(task)
        if threads > 1 and task % 2 == 0:  # the next one overtakes
            assert gates[task + 1].wait(30)
        gates[task].set()
        return 10 * task

    found = read_ahead(iter(range(40)), work, threads)
    assert list(islice(found, 4)) == [0, 10, 20, 30]
    assert max(begun) <= 3 + 2 * threads
    for gate in gates:
        gate.set()
    found.close()
    assert len(begun) < 40


def test_an_error_comes_at_its_turn() -> None:
    def work(task: int) -> int:
        if task == 3:
            raise UserError("the sample is damaged")
        return task

    found: Iterator[int] = read_ahead(iter(range(9)), work, 2)
    assert list(islice(found, 3)) == [0, 1, 2]
    with pytest.raises(UserError, match="damaged"):
        next(found)


def preset_of_8_px():
    base = digits()
    return replace(base, tokenizer=replace(base.tokenizer, resolution=8, ch_mult=(1, 2)))


def test_crops_are_the_default_where_they_are_stored(data: Path, tmp_path: Path) -> None:
    def settings(data: Path, kind: str = "tokenizer", **options: object) -> dict[str, object]:
        made = make_job(kind, preset_of_8_px(), data, tmp_path / "run", Options(**options))
        assert made.runtime.loader_workers == options.get("loader_workers", 1)
        assert "loader_workers" in made.config[1]
        return dict(made.settings.more)

    prepare(source="folder", path=data.parent / "tree", resolution=8, out=tmp_path / "plain")
    for kind in ("tokenizer", "classifier"):
        found = settings(data, kind, loader_workers=3)
        assert found["augmentation"] == {"crop": True, "flip": False}
        found = settings(data, kind, crop="centre", flip=True)
        assert found["augmentation"] == {"crop": False, "flip": True}
        assert "augmentation" not in settings(data, kind, crop="centre")
        assert "augmentation" not in settings(tmp_path / "plain", kind)
        with pytest.raises(UserError, match=r"random crops need more .*--keep 1\.125"):
            settings(tmp_path / "plain", kind, crop="random")


def test_views_are_part_of_a_transformers_settings(
    data: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    prepare(source="folder", path=data.parent / "tree", resolution=16, out=tmp_path / "d", keep=1.5)
    tokenizer = tiny_pipeline / "tokenizer"

    def made(**options: object) -> Job:
        own = TransformerOptions(**options)
        return make_job("transformer", digits(), tmp_path / "d", tmp_path / "run", own,
                        tokenizer=tokenizer)  # fmt: skip

    assert "codes" not in made().settings.more
    varied = made(views=3, flip=True)
    assert varied.settings.more["codes"] == {"views": 3, "flip": True}
    assert (
        len(
            {
                made(**views).inputs.codes
                for views in ({}, {"views": 3, "flip": True}, {"views": 3}, {"views": 2})
            }
        )
        == 4
    )
    with pytest.raises(UserError, match="raise --views to flip"):
        made(flip=True)
    with pytest.raises(UserError, match="--crop is for trainings on pixels"):
        made(crop="random", views=2)


def test_a_wrong_number_of_threads_is_named() -> None:
    with pytest.raises(UserError, match="--loader-workers must be >= 0, got -1"):
        Options(loader_workers=-1)
