"""Listing, splitting and reading sources: counts, orientation, modes, crops."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srdd.errors import UserError
from srdd_platform.data.modes import BadImageError
from srdd_platform.data.pixels import fit, read_image
from srdd_platform.data.sources import (
    digits,
    folder,
    open_source,
    permutation,
    stratified,
)

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def put(path: Path, color: tuple[int, int, int] = RED, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def origins(source, split: str) -> list[str]:
    return [entry.origin for entry in source.entries[split]]


def test_digits_are_split_by_class() -> None:
    source = digits(seed=0, val_fraction=0.2)
    assert source.classes == tuple("0123456789")
    assert [len(source.entries[split]) for split in ("train", "val")] == [1437, 360]
    in_all = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    in_val = np.bincount([entry.label for entry in source.entries["val"]])
    assert np.abs(in_val - 0.2 * in_all).max() < 1  # a fifth of every class, rounded
    both = origins(source, "train") + origins(source, "val")
    assert len(set(both)) == 1797


def test_digits_split_follows_the_seed() -> None:
    first, again, other = (digits(seed=s, val_fraction=0.2) for s in (0, 0, 1))
    assert first.entries == again.entries
    assert set(first.entries["val"]) != set(other.entries["val"])


def test_digits_pixels_at_their_own_size() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    source = digits(seed=0, val_fraction=0.2)
    for item in source.items(seed=0, resolution=8):
        i = int(item.origin.removeprefix("digits/"))
        expected = np.floor(bunch.images[i] * 255 / 16 + 0.5).astype(np.uint8)
        np.testing.assert_array_equal(item.load().pixels, np.stack([expected] * 3, axis=-1))
        assert item.label == bunch.target[i]


def test_digits_are_enlarged_bicubically() -> None:
    source = digits(seed=0, val_fraction=0.2)
    small = Image.fromarray(source.read("digits/0003", 8).pixels[..., 0])
    expected = np.asarray(small.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(source.read("digits/0003", 16).pixels[..., 1], expected)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 100])
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_stratified_leaves_every_class_in_both_parts(n: int, fraction: float) -> None:
    labels = [0] * n + [1] * 40 + [2] * 7
    chosen = stratified(labels, fraction, seed=3)
    for label in range(3):
        of_class = chosen[np.array(labels) == label]
        assert of_class.sum() >= (len(of_class) >= 2)
        assert not of_class.all()


def test_permutation_is_a_fixed_shuffle() -> None:
    assert permutation(10, 0, 1).tolist() == [3, 8, 5, 9, 6, 0, 7, 1, 4, 2]
    assert permutation(10, 0, 1).tolist() != permutation(10, 0, 2).tolist()
    assert permutation(10, 0, 1).tolist() != permutation(10, 0, 1, 1).tolist()
    assert permutation(10, 0, 1).tolist() != permutation(10, 1, 1).tolist()


def test_folder_without_splits(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path / "cat" / f"{i}.png")
    for i in range(2):
        put(tmp_path / "ant" / "deep" / f"{i}.JPG")
    put(tmp_path / "bee" / "only.WebP")
    put(tmp_path / "cat" / ".hidden.png")
    put(tmp_path / ".thumbs" / "0.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    source = folder(tmp_path, seed=0, val_fraction=0.2)
    assert source.classes == ("ant", "bee", "cat")
    counts = {
        split: np.bincount([entry.label for entry in source.entries[split]], minlength=3).tolist()
        for split in ("train", "val")
    }
    # ceil(0.2 * 13) = 3: cat 2, ant 1 of 2, bee keeps its only one
    assert counts == {"train": [1, 1, 8], "val": [1, 0, 2]}
    assert "bee/only.WebP" in origins(source, "train")
    assert any(origin.startswith("ant/deep/") for origin in origins(source, "val"))


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_folder_with_its_own_split(tmp_path: Path, held_out: str) -> None:
    for i in range(3):
        put(tmp_path / "train" / "a" / f"{i}.png")
        put(tmp_path / "train" / "b" / f"{i}.png")
    put(tmp_path / held_out / "b" / "x.png")
    source = folder(tmp_path, seed=0, val_fraction=0.2)
    assert source.classes == ("a", "b")
    assert origins(source, "val") == [f"{held_out}/b/x.png"]
    assert source.entries["val"][0].label == 1
    assert len(source.entries["train"]) == 6


def test_val_goes_before_test(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        put(tmp_path / split / "a" / "0.png")
    assert origins(folder(tmp_path, seed=0, val_fraction=0.2), "val") == ["val/a/0.png"]


def test_train_alone_is_split(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path / "train" / "a" / f"{i}.png")
    source = folder(tmp_path, seed=0, val_fraction=0.2)
    assert source.classes == ("a",)
    assert [len(source.entries[split]) for split in ("train", "val")] == [8, 2]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path / "car" / "0.png")
    put(tmp_path / "train" / "0.png")
    assert folder(tmp_path, seed=0, val_fraction=0.2).classes == ("car", "train")


def test_items_are_shuffled_by_the_seed(tmp_path: Path) -> None:
    for name in "abcd":
        for i in range(25):
            put(tmp_path / name / f"{i:02d}.png")
    source = folder(tmp_path, seed=0, val_fraction=0.2)
    first, again, other = (
        [item.origin for item in source.items(seed=s, resolution=8)] for s in (0, 0, 1)
    )
    assert first == again != other
    assert sorted(first) == sorted(other)
    assert first[:80] != sorted(first[:80])
    labels = [item.label for item in source.items(seed=0, resolution=8)]
    assert set(labels[:20]) == {0, 1, 2, 3}  # not sorted by class
    splits = [item.split for item in source.items(seed=0, resolution=8)]
    assert splits == ["train"] * 80 + ["val"] * 20


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda root: None, "has no class folders"),
        (lambda root: put(root / "loose.png"), "has no class folders"),
        (lambda root: [put(root / "a" / "0.png"), (root / "empty").mkdir()], "empty has no images"),
        (
            lambda root: [put(root / "train/a/0.png"), put(root / "test/z/0.png")],
            "has class 'z', which train does not have",
        ),
    ],
)
def test_unusable_folders_are_named(tmp_path: Path, make, text: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=text):
        folder(tmp_path, seed=0, val_fraction=0.2)


@pytest.mark.parametrize(
    ("kind", "path", "text"),
    [
        ("folder", Path("nowhere/at/all"), "nowhere/at/all does not exist"),
        ("folder", None, "needs a path"),
        ("digits", Path("nowhere"), "takes no path"),
        ("mnist", None, "choose digits or folder"),
    ],
)
def test_unknown_sources_are_refused(kind: str, path: Path | None, text: str) -> None:
    with pytest.raises(UserError, match=text):
        open_source(kind, path, seed=0, val_fraction=0.2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """Stored as a camera would: the upright picture has its red quarter at the top left."""
    upright = np.zeros((8, 8, 3), dtype=np.uint8)
    upright[:4, :4] = RED
    upright[:4, 4:] = GREEN
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    stored.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png", 8), upright)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[:, 2:4] = (*RED, 255)
    rgba[:, 4:] = (0, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    pixels = read_image(tmp_path / "rgba.png", 8)
    assert [pixels[0, column].tolist() for column in (0, 2)] == [list(WHITE), list(RED)]
    assert pixels[0, 4].tolist() == [127, 127, 127]


def test_transparent_palette_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *GREEN, 0, 0, 255])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.gif", transparency=0)
    image.save(tmp_path / "opaque.png")
    pixels = read_image(tmp_path / "p.gif", 8)
    assert (pixels[0, 0].tolist(), pixels[4, 4].tolist()) == (list(WHITE), list(GREEN))
    assert read_image(tmp_path / "opaque.png", 8)[0, 0].tolist() == [0, 0, 0]


def test_grey_images_keep_their_levels(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "grey.png", 8), grey[..., None].repeat(3, 2)
    )


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040  # up to 65520
    Image.fromarray(grey).save(tmp_path / name)
    expected = np.round(grey / 257).astype(np.uint8)
    assert expected.max() == 255
    np.testing.assert_array_equal(read_image(tmp_path / name, 8)[..., 2], expected)


def test_an_image_of_the_right_size_is_untouched(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", 8), pixels)


def test_the_shorter_side_is_kept_and_the_centre_cut() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 13, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(fit(Image.fromarray(pixels), 8)), pixels[:, 2:10])
    thirds = np.zeros((90, 30, 3), dtype=np.uint8)
    thirds[30:60] = 200  # the middle third is the centre square
    np.testing.assert_array_equal(np.asarray(fit(Image.fromarray(thirds), 10))[3:7], 200)


def test_reduction_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(fit(Image.fromarray(stripes), 16)).astype(int)
    assert abs(small[2:-2, 2:-2] - 127).max() <= 3  # nearest or plain bilinear would give 0 or 255


def test_a_long_thin_image_needs_no_long_thin_buffer() -> None:
    assert fit(Image.new("RGB", (60_000, 1)), 256).size == (256, 256)


def test_damaged_images_say_why_without_a_path(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / "whole.jpg"
    Image.fromarray(noise).save(whole)
    (tmp_path / "half.jpg").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("F", (8, 8)).save(tmp_path / "float.tif")
    reasons = {}
    for name in ("half.jpg", "text.png", "gone.png", "float.tif"):
        with pytest.raises(BadImageError) as caught:
            read_image(tmp_path / name, 8)
        reasons[name] = str(caught.value)
    assert reasons["half.jpg"].startswith("image file is truncated")
    assert reasons["text.png"] == "not an image of a known format"
    assert reasons["gone.png"] == "No such file or directory"
    assert reasons["float.tif"].startswith("floating-point pixels")
    assert not any(str(tmp_path) in reason for reason in reasons.values())
