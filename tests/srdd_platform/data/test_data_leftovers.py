"""What is not used is counted by kind; what one class or one image a class mean is said."""

import os
from pathlib import Path

import pytest
from PIL import Image

from srdd.errors import UserError
from srdd_platform.data.leftovers import left_aside
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.recipes import RECIPES, open_recipe
from srdd_platform.data.shards import prepare
from srdd_platform.data.sources import folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of five images."""
    for name in ("cat", "dog"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / "tree" / name / f"{i}.png")
    return tmp_path / "tree"


def notes(path: Path) -> list[str]:
    return [str(note) for note in folder(path, seed=0, val_fraction=0.2).notes()]


def test_a_tree_of_images_alone_leaves_nothing(tree: Path) -> None:
    assert notes(tree) == []


@pytest.mark.usefixtures("without_heif")
def test_every_kind_is_counted(tree: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.tga", "labels.csv", "x.txt", "y.txt", "README", ".DS_Store",
                 "Thumbs.db", "._0.png"):  # fmt: skip
        (tree / "cat" / name).touch()
    (tree / "dog" / ".cache").mkdir()
    (tree / "dog" / ".cache" / "0.png").touch()
    (tree / "dog" / "moved").symlink_to(tree / "nowhere")
    Image.new("RGB", (8, 8)).save(tree / "cover.png")
    assert notes(tree) == [
        "1 image beside the class folders, not taken",
        "2 .heic files, not read: `pip install pillow-heif` lets them be read",
        "1 .tga file, not read: save them as PNG or JPEG",
        "4 of other kinds (.txt, .csv, without an extension)",
        "4 hidden or of the system (.DS_Store, ._0.png, .cache, Thumbs.db)",
        "1 broken link",
    ]


def test_special_files_are_not_opened(tree: Path) -> None:
    """Reading a pipe would wait for ever."""
    os.mkfifo(tree / "cat" / "pipe.png")
    source = folder(tree, seed=0, val_fraction=0.2)
    assert len(source) == 10
    assert [str(note) for note in source.notes()] == ["1 of other kinds (.png)"]


def test_a_link_to_a_folder_above_ends(tree: Path) -> None:
    (tree / "cat" / "again").symlink_to(tree)
    source = folder(tree, seed=0, val_fraction=0.2)
    assert len(source) == 5 + 10  # the link is followed once: its cat/ is a folder above it
    assert any("taken for their class" in str(note) for note in source.notes())


def test_images_inside_inner_folders_are_told(tree: Path) -> None:
    """Splits inside classes would leak held-out images into the training."""
    for part, i in (("train", 7), ("test", 8), ("test", 9)):
        (tree / "cat" / part).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tree / "cat" / part / f"{i}.png")
    assert notes(tree) == [
        "3 images in folders inside class folders, such as cat/test/: taken for their class"
    ]


@pytest.mark.parametrize("top", ["My Photos (1)", "archive"])
def test_the_folder_of_an_archive_above_the_classes_is_asked_about(tree: Path, top: str) -> None:
    """Unpacked into a folder of its own, a set would be one class without a word."""
    outer = tree.parent / "outer"
    outer.mkdir()
    tree.rename(outer / top)
    (line,) = notes(outer)
    assert line == (
        f"10 images in folders inside class folders, such as {top}/cat/ "
        f"(are these the classes? then --path ends with {top}): taken for their class"
    )
    assert notes(outer / top) == []  # the advice works


def test_one_folder_inside_a_class_is_no_list_of_classes(tree: Path) -> None:
    (tree / "dog").rename(tree / "cat" / "images")
    for image in (tree / "cat").glob("*.png"):
        image.unlink()
    (line,) = notes(tree)
    assert "--path" not in line


def test_names_that_are_not_utf8_are_escaped(tree: Path) -> None:
    (tree / os.fsdecode(b"caf\xe9.d\xe9")).touch()
    (tree / "cat" / os.fsdecode(b".h\xe9")).touch()
    assert notes(tree) == [
        "1 of other kinds (.d\\xe9)",
        "1 hidden or of the system (.h\\xe9)",
    ]


def test_a_class_of_one_image_is_named(tree: Path) -> None:
    (tree / "eel").mkdir()
    Image.new("RGB", (8, 8)).save(tree / "eel" / "0.png")
    assert notes(tree) == ["1 class with one image, not held out (eel)"]


def test_labels_in_a_table_beside_one_folder_are_named(tmp_path: Path) -> None:
    """Kaggle's train.csv beside images/: all of it is one class, which is hardly meant."""
    (tmp_path / "images").mkdir()
    for i in range(5):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "train.csv").write_text("id,label\n0,cat\n")
    text = (
        "1 table, which may hold labels, not read: put each class's images into a folder of its own"
    )
    assert text in notes(tmp_path)
    (tmp_path / "others").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "others" / "0.png")
    assert text not in notes(tmp_path)


@pytest.mark.usefixtures("without_heif")
def test_a_folder_of_unread_images_is_named_with_the_remedy(tree: Path) -> None:
    (tree / "eel").mkdir()
    for i in range(3):
        (tree / "eel" / f"{i}.heic").touch()
    with pytest.raises(UserError, match=r"eel has no images \(3 \.heic files, not read: `pip "):
        folder(tree, seed=0, val_fraction=0.2)


def test_notes_are_kept_with_the_shards(tree: Path, tmp_path: Path) -> None:
    (tree / "cat" / "x.txt").touch()
    manifest = prepare(source="folder", path=tree, resolution=8, out=tmp_path / "out")
    assert [str(note) for note in manifest.notes] == ["1 of other kinds (.txt)"]
    assert Manifest.load(tmp_path / "out") == manifest
    assert prepare(source="folder", path=tree, resolution=8, out=tmp_path / "out") == manifest


def test_nothing_to_hold_out_is_refused(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / name / "0.png")
    with pytest.raises(UserError, match="one image a class, so that none can be held out: add"):
        prepare(source="folder", path=tmp_path / "in", resolution=8, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_readable_held_out_image_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "val" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "val" / "cat" / "0.png").touch()
    tree.rename(tmp_path / "in" / "train")
    with pytest.raises(UserError, match=r"no held-out image can be read .* val/cat/0\.png: not an"):
        prepare(source="folder", path=tmp_path / "in", resolution=8, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_recipe_does_not_choose_is_counted(tmp_path: Path) -> None:
    for place in ("train/cat/0.jpg", "val/cat/0.jpg", "test/cat/0.jpg", "test/cat/1.jpg", "a.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    found = open_recipe(RECIPES["afhq"], tmp_path, seed=0, allow_counts=True)
    assert [str(note) for note in found.notes()] == [
        "2 images in test/, not taken", "1 of other kinds (.txt)",
    ]  # fmt: skip


def test_many_kinds_are_cut_short(tmp_path: Path) -> None:
    for i in range(7):
        (tmp_path / f"f.{'x' * (i + 1)}").touch()
    (note,) = left_aside(tmp_path, ())
    assert str(note) == "7 of other kinds (.x, .xx, .xxx, .xxxx and 3 more)"
