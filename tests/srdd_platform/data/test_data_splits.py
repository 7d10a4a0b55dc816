"""Folders that are splits, folders that are classes, and what is refused because it is unclear."""

from pathlib import Path

import pytest
from PIL import Image

from srdd.errors import UserError
from srdd_platform.data.sources import Source, folder
from srdd_platform.data.splits import Splits, find_splits


def put(root: Path, *files: str) -> Path:
    """Images at places below a folder; a place that ends in "/" is an empty folder."""
    for file in files:
        path = root / file
        (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not file.endswith("/"):
            Image.new("RGB", (8, 8)).save(path, "png")
    return root


def opened(root: Path) -> Source:
    return folder(root, seed=0, val_fraction=0.2)


def origins(source: Source, split: str) -> list[str]:
    return [entry.origin for entry in source.entries[split]]


def split_tree(root: Path, *splits: str) -> Path:
    return put(root, *(f"{split}/{name}/0.png" for split in splits for name in ("cat", "dog")))


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "validation"),  # datasets#4839
        ("train", "valid"),  # roboflow-python#153
        ("Training", "Testing"),
        ("TRAIN", "Val"),
        ("train", "dev"),
        ("training", "eval"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("seg_train", "seg_test"),  # Intel's scenes on Kaggle
        ("dogs-train", "dogs-evaluation"),
    ],
)
def test_splits_as_people_write_them(tmp_path: Path, train: str, held_out: str) -> None:
    source = opened(split_tree(tmp_path, train, held_out))
    assert source.classes == ("cat", "dog")
    assert origins(source, "train") == [f"{train}/cat/0.png", f"{train}/dog/0.png"]
    assert origins(source, "val") == [f"{held_out}/cat/0.png", f"{held_out}/dog/0.png"]
    assert source.rule == f"{train}/ is trained on, {held_out}/ is held out"


@pytest.mark.parametrize("order", [("train", "valid", "test"), ("Test", "Train", "Dev")])
def test_val_goes_before_test_which_is_named(tmp_path: Path, order: tuple[str, ...]) -> None:
    split_tree(tmp_path, *order)
    train, val, test = (
        next(name for name in order if name.lower() in names)
        for names in (("train",), ("valid", "dev"), ("test",))
    )
    assert find_splits(tmp_path) == Splits(
        train=train, val=val, aside=((test, f"{val}/ is held out instead"),)
    )


def test_a_folder_twice_in_itself_is_one_split(tmp_path: Path) -> None:
    """As Kaggle's archives unpack."""
    put(tmp_path, *(f"{part}/{part}/{name}/0.png" for part in ("training_set", "test_set")
                    for name in ("cats", "dogs")))  # fmt: skip
    source = opened(tmp_path)
    assert source.classes == ("cats", "dogs")
    assert origins(source, "val")[0] == "test_set/test_set/cats/0.png"
    assert source.notes() == []


@pytest.mark.parametrize("flat", ["test", "Testing", "validation", "test1"])
def test_a_flat_folder_is_no_labelled_split(tmp_path: Path, flat: str) -> None:
    """fastai#1552, #1266: Kaggle's test/ has images without labels, and no class folders."""
    put(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(10)),
        *(f"{flat}/{i}.png" for i in range(3)))  # fmt: skip
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert [len(source.entries[split]) for split in ("train", "val")] == [16, 4]
    assert source.rule == "20% of each class in train/, chosen by the seed, is held out"
    assert [str(note) for note in source.notes()] == [
        f"3 images in {flat}/, not used: it has no class folders, so no labels"
    ]


def test_a_labelled_test_folder_goes_before_a_flat_val_folder(tmp_path: Path) -> None:
    split_tree(tmp_path, "train", "test")
    put(tmp_path, "val/0.png")
    assert find_splits(tmp_path) == Splits(
        train="train", val="test", aside=(("val", "it has no class folders, so no labels"),)
    )


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (("car/0.png", "train/0.png"), ("car", "train")),
        (("bus/0.png", "car/0.png", "test/0.png", "train/0.png"), ("bus", "car", "test", "train")),
        (("car/0.png", "train/steam/0.png", "train/diesel/0.png"), ("car", "train")),
        (("urine/0.png", "test/blood/0.png", "train/steam/0.png"), ("test", "train", "urine")),
        (("test_tube/0.png", "train_station/0.png"), ("test_tube", "train_station")),
        (("valid/0.png", "void/0.png"), ("valid", "void")),  # of coupons, say
        (("train/0.png",), ("train",)),
        (("dataset/0.png", "images/0.png"), ("dataset", "images")),
    ],
)
def test_a_class_may_have_a_split_s_name(
    tmp_path: Path, files: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    assert opened(put(tmp_path, *files)).classes == classes


def test_other_folders_beside_splits_are_counted(tmp_path: Path) -> None:
    split_tree(tmp_path, "train", "val")
    put(tmp_path, "examples/0.png", "examples/1.png", "train/loose.png", "cover.png")
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert [str(note) for note in source.notes()] == [
        "3 images in examples/, train/, not taken",
        "1 image beside the class folders, not taken",
    ]


SYSTEM = ("__MACOSX/train/cat/._0.png", "@eaDir/0.png", "lost+found/", "Thumbs.db",
          ".ipynb_checkpoints/0.png", "$RECYCLE.BIN/0.png", "System Volume Information/",
          "desktop.ini")  # fmt: skip


@pytest.mark.parametrize("splits", [(".",), ("train", "valid")])
def test_folders_of_systems_are_neither_splits_nor_classes(
    tmp_path: Path, splits: tuple[str, ...]
) -> None:
    split_tree(tmp_path, *splits)
    places = {tmp_path, *(tmp_path / split for split in splits), tmp_path / splits[-1] / "cat"}
    for place in places:
        put(place, *SYSTEM)
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert len(source) == 2 * len(splits)
    (note,) = [note for note in source.notes() if "class" not in note.text]
    assert note.num == len(places) * len(SYSTEM)
    assert note.text.startswith("hidden or of the system ($RECYCLE.BIN, ")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("train/a/0.png", "val/"), "val has no images: put class folders into it, or remove it"),
        (("train/a/0.png", "val/a/"), "val has no images: put class folders into it, or remove"),
        (("train/a/0.png", "test/a/0.txt"), "test has no images: "),
        (("train/a/0.png", "val/a/0.png", "valid/a/0.png"), "val/ and valid/, which mean the same"),
        (("train/a/0.png", "Training/a/0.png"), "Training/ and train/, which mean the same split"),
        (("train/0.png", "test/0.png"), "test/, train/ without class folders: sort the images of"),
        (("train/0.png", "valid/a/0.png"), "train/, valid/ and no train/ with class folders"),
        (("test/a/0.png", "test/b/0.png"), "has test/ and no train/ with class folders: add it"),
        (("data/train/a/0.png", "data/val/a/0.png"), "holds data/ alone, which has train/ in it"),
        (("train/a/0.png", "val/a/0.png", "val/b/0.png"), "class 'b', which train does not have"),
        (("train/a/0.png", "train/b/", "val/a/0.png"), "class folder .*train/b has no images"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    put(tmp_path, *(file for file in files if not file.endswith(".txt")))
    for file in files:
        if file.endswith(".txt"):
            (tmp_path / file).parent.mkdir(parents=True)
            (tmp_path / file).touch()
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)
