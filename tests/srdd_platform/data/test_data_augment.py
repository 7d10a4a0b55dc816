"""Stored margins, crops and flips: where they are cut, and what they depend on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srdd.errors import UserError
from srdd_platform.data.augment import Augmentation
from srdd_platform.data.dataset import Sample, ShardDataset, load_arrays
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.pixels import centre, fit
from srdd_platform.data.shards import prepare

SIDE = 8


class Varied:
    """A split by (epoch, index), cut as trainings cut it."""

    def __init__(self, dataset: ShardDataset, augmentation: Augmentation) -> None:
        self.dataset, self.augmentation = dataset, augmentation

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.dataset.samples([key[1]], [self.augmentation.cut(*key)])[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pixels that tell their place: red is the row, green the column, of 12 x 15 stored ones."""
    root = tmp_path_factory.mktemp("kept")
    rows, columns = np.mgrid[:12, :15].astype(np.uint8)
    for name in "ab":
        (root / "tree" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.stack([rows, columns, np.full_like(rows, i)], axis=-1)
            Image.fromarray(pixels).save(root / "tree" / name / f"{i}.png")
    prepare(source="folder", path=root / "tree", resolution=SIDE, out=root / "out", keep=1.5,
            shard_size_images=5, workers=1)  # fmt: skip
    return root / "out"


def corner(image: torch.Tensor) -> tuple[int, int]:
    """Row and column of the stored image at the crop's top left."""
    return int(image[0, 0, 0]), int(image[1, 0, 0])


def test_a_whole_image_is_kept(data: Path) -> None:
    manifest = Manifest.load(data)
    assert (manifest.resolution, manifest.stored_side, manifest.settings.keep) == (8, 12, 1.5)
    assert '"keep": 1.5' in (data / "manifest.json").read_text()


def test_without_augmentation_the_centre_is_read(data: Path) -> None:
    dataset = ShardDataset(data, "train")
    assert (len(dataset), dataset.resolution) == (16, SIDE)
    expected_rows = torch.arange(2, 10, dtype=torch.uint8)  # (12 - 8) / 2
    expected_columns = torch.arange(4, 12, dtype=torch.uint8)  # round(3.5)
    images, _ = load_arrays(data, "train")
    for i in range(16):
        image = dataset[i]["image"]
        assert image.shape == (3, SIDE, SIDE)
        assert torch.equal(image[0], expected_rows[:, None].expand(SIDE, SIDE))
        assert torch.equal(image[1], expected_columns[None].expand(SIDE, SIDE))
        assert torch.equal(image, images[i])


def test_crops_lie_anywhere_inside(data: Path) -> None:
    dataset = ShardDataset(data, "train")
    varied = Varied(dataset, Augmentation())
    corners = Counter()
    for epoch in range(40):
        for i in range(16):
            sample = varied[epoch, i]
            image, (top, left) = sample["image"], corner(sample["image"])
            corners[top, left] += 1
            assert image.shape == (3, SIDE, SIDE)
            assert image[0, :, 3].tolist() == list(range(top, top + SIDE))
            assert image[1, 3].tolist() == list(range(left, left + SIDE))
            assert (sample["label"], sample["index"]) == (dataset[i]["label"], i)
            assert image[2, 0, 0] == dataset[i]["image"][2, 0, 0]
    assert {top for top, _ in corners} == set(range(12 - 8 + 1))
    assert {left for _, left in corners} == set(range(15 - 8 + 1))
    assert max(corners.values()) < 40  # 16 a place on average


def test_flips_mirror_half_of_the_same_crops(data: Path) -> None:
    dataset = ShardDataset(data, "train")
    plain = Varied(dataset, Augmentation())
    flips = Varied(dataset, Augmentation(flip=True))
    mirrored = 0
    for epoch in range(20):
        for i in range(16):
            image, other = plain[epoch, i]["image"], flips[epoch, i]["image"]
            mirrored += int(torch.equal(image.flip(-1), other))
            assert torch.equal(image, other) or torch.equal(image.flip(-1), other)
    assert 120 < mirrored < 200  # of 320


def test_a_flip_alone_keeps_the_centre(data: Path) -> None:
    dataset = ShardDataset(data, "train")
    flips = Varied(dataset, Augmentation(crop=False, flip=True))
    seen = {corner(flips[epoch, 3]["image"]) for epoch in range(12)}
    assert seen == {(2, 4), (2, 11)}


def test_a_draw_follows_from_seed_epoch_and_sample_alone() -> None:
    pixels = np.arange(100 * 100 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 100, 3)
    pixels[..., 0], pixels[..., 1] = np.mgrid[:100, :100].astype(np.uint8)

    def draw(seed: int, epoch: int, sample: int) -> tuple[int, int]:
        cut = Augmentation(seed=seed).cut(epoch, sample)(pixels, 10)
        return int(cut[0, 0, 0]), int(cut[0, 0, 1])

    first = draw(3, 4, 5)
    assert draw(3, 4, 5) == first
    assert len({first, draw(4, 4, 5), draw(3, 5, 5), draw(3, 4, 6), draw(3, 5, 4)}) == 5
    assert [draw(0, 0, i) for i in range(3)] == [(3, 40), (1, 57), (1, 43)]  # for ever


def test_a_crop_needs_a_margin(tmp_path: Path) -> None:
    prepare(source="digits", resolution=8, out=tmp_path / "out", workers=1)
    dataset = ShardDataset(tmp_path / "out", "val")
    with pytest.raises(UserError, match=r"more than the 8 px .*--keep 1\.125"):
        Augmentation().check(dataset.manifest)
    image = Varied(dataset, Augmentation(crop=False))[7, 3]["image"]
    assert torch.equal(image, dataset[3]["image"])


def test_resizing_is_the_peers() -> None:
    """Resize and CenterCrop of torchvision, as VAR calls them: the longer side is rounded down."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 57, 3), dtype=np.uint8))
    kept = fit(image, 32, 1.125)
    expected = image.resize((51, 36), Image.Resampling.LANCZOS)  # int(36 * 57 / 40)
    np.testing.assert_array_equal(np.asarray(kept), np.asarray(expected))
    middle = np.asarray(expected)[2:34, 10:42]  # int(round((51 - 32) / 2.0))
    np.testing.assert_array_equal(centre(np.asarray(kept), 32), middle)


def test_a_long_thin_image_is_cut_to_four_sides() -> None:
    assert fit(Image.new("RGB", (60_000, 2)), 16, 1.125).size == (72, 18)
    assert fit(Image.new("RGB", (2, 60_000)), 16, 1.125).size == (18, 72)


@pytest.mark.parametrize("keep", [0.9, 4.1, float("nan")])
def test_an_impossible_margin_is_refused(tmp_path: Path, keep: float) -> None:
    with pytest.raises(UserError, match="keep lies between 1 and 4"):
        prepare(source="digits", resolution=8, out=tmp_path / "out", keep=keep)


def test_digits_with_a_margin(tmp_path: Path) -> None:
    manifest = prepare(source="digits", resolution=16, out=tmp_path / "out", keep=1.125, workers=1)
    assert manifest.stored_side == 18
    assert ShardDataset(tmp_path / "out", "val")[0]["image"].shape == (3, 16, 16)
    with pytest.raises(UserError, match=r"keep 1\.125 \(asked for 1\.0\)"):
        prepare(source="digits", resolution=16, out=tmp_path / "out")
