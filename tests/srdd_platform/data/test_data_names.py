"""Class names that come from folders and tables: one form, and nothing that cannot be written."""

import csv
import json
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srdd.errors import UserError
from srdd_platform.data.cifar import cifar10
from srdd_platform.data.recipes import RECIPES, open_recipe
from srdd_platform.data.shards import prepare
from srdd_platform.data.sources import Source, folder

WNIDS = ("n01440764", "n02085620")
NFC, NFD = "caf\u00e9", "cafe\u0301"


def put(root: Path, *names: str) -> Path:
    """Images of 8 x 8 pixels."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(root / name, format="PNG")
    return root


def listed(path: Path) -> Source:
    return folder(path, seed=0, val_fraction=0.5)


def test_a_class_is_one_class_however_each_split_spells_it(tmp_path: Path) -> None:
    """MacOS writes é as two characters, everything else as one; copies keep what they were."""
    root, out = tmp_path / "images", tmp_path / "shards"
    put(root, f"train/{NFC}/0.png", "train/tea/0.png", f"val/{NFD}/1.png", "val/tea /1.png")
    source = listed(root)
    assert source.classes == (NFC, "tea")
    assert [(e.label, e.origin) for e in source.entries["val"]] == [
        (0, f"val/{NFD}/1.png"),
        (1, "val/tea /1.png"),
    ]
    manifest = prepare(source="folder", path=root, resolution=8, out=out)
    written = json.loads((out / "manifest.json").read_text())
    assert written["classes"] == list(manifest.classes) == [NFC, "tea"]
    assert written["splits"]["val"]["per_class"] == {NFC: 1, "tea": 1}


def test_a_recipe_s_class_is_one_class_however_each_part_spells_it(tmp_path: Path) -> None:
    put(tmp_path, f"train/{NFC}/0.png", "train/tea/0.png", f"val/{NFD}/1.png", "val/tea /1.png")
    source = open_recipe(RECIPES["afhq"], tmp_path, seed=0, allow_counts=True)
    assert source.classes == (NFC, "tea")
    assert [(e.label, e.origin) for e in source.entries["val"]] == [
        (0, f"val/{NFD}/1.png"),
        (1, "val/tea /1.png"),
    ]


@pytest.mark.parametrize("above", ["", "train/", "test/"])
@pytest.mark.parametrize("raw", [b"caf\xe9", b"caf\x82", b"\xff", b"\xed\xa0\x80"])
def test_a_folder_that_is_not_utf8_is_refused_before_anything_is_read(
    tmp_path: Path, above: str, raw: bytes
) -> None:
    """Zips made on Windows unpack to such names: python/cpython#83042, mirdata#306."""
    root, out = tmp_path / "images", tmp_path / "shards"
    put(root, "train/tea/0.png", "test/tea/0.png") if above else put(root, "tea/0.png")
    os.mkdir(os.fsencode(root / above) + b"/" + raw)
    shown = "".join(chr(b) if b < 128 else f"\\x{b:02x}" for b in raw)
    with pytest.raises(UserError) as caught:
        prepare(source="folder", path=root, resolution=8, out=out)
    assert str(caught.value) == (
        f"class folder '{shown}' in {root / above} has a name that is not UTF-8: rename it"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ((NFC, NFD), r"class folders 'cafe\\u0301' and 'caf\\xe9' in .* are both class 'café'"),
        (("cat", "cat "), "class folders 'cat' and 'cat ' in .* are both class 'cat'"),
        (("cat", "\ufeffcat"), r"'cat' and '\\ufeffcat' in"),
        (("dog\r", "dog"), r"'dog' and 'dog\\r' in"),
        (("\u00a0", "dog"), "in .* has a blank name: rename it"),
    ],
)
@pytest.mark.parametrize("recipe", [False, True])
def test_two_folders_of_one_class_are_refused_by_both_names(
    tmp_path: Path, folders: tuple[str, ...], message: str, recipe: bool
) -> None:
    put(tmp_path, *(f"{split}/{name}/0.png" for name in folders for split in ("train", "val")))
    read = partial(open_recipe, RECIPES["afhq"], allow_counts=True, seed=0) if recipe else listed
    with pytest.raises(UserError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_is_read_as_its_program_wrote_it(
    tmp_path: Path, encoding: str, mark: str, end: str
) -> None:
    """Excel writes a byte order mark, CRLF, and semicolons where the comma is decimal."""
    for part in ("train", "val"):
        with (tmp_path / f"{part}.csv").open("w", encoding=encoding, newline="") as file:
            table = csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator=end)
            table.writerow([" label", "filename"])
            for name in (NFD if part == "val" else NFC, 'lamp, "desk"'):
                for i in range(2):
                    put(tmp_path, f"images/{part}{len(name)}{i}.jpg")
                    table.writerow([f" {name} ", f"{part}{len(name)}{i}.jpg"])
            table.writerow([])
    source = open_recipe(RECIPES["mini-imagenet"], tmp_path, seed=0, allow_counts=True)
    assert source.classes == (NFC, 'lamp, "desk"')
    assert len(source) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"filename,label\na.jpg\n", "train.csv has no filename or label in line 2: complete or"),
        (b"filename,label\na.jpg,x\nb.jpg, \n", "train.csv has no filename or label in line 3"),
        (b"filename,label\na.jpg,caf\xe9\n", "train.csv is not UTF-8 text: save it as UTF-8"),
        (b"", "train.csv has no columns filename,label"),
        (b"a.jpg,x\n", "train.csv has no columns filename,label"),
    ],
)
def test_a_table_that_lacks_names_is_refused_by_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    put(tmp_path, "images/a.jpg")
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_recipe(RECIPES["mini-imagenet"], tmp_path, seed=0, allow_counts=True)


@pytest.mark.parametrize("solution", [False, True])
def test_imagenets_tables_may_have_a_byte_order_mark(tmp_path: Path, solution: bool) -> None:
    images = [f"ILSVRC2012_val_0000000{i + 1}" for i in range(2)]
    put(tmp_path, *(f"train/{wnid}/0.JPEG" for wnid in WNIDS))
    put(tmp_path, *(f"val/{image}.JPEG" for image in images))
    if solution:
        rows = [f"{image},{wnid} 1 2 3 4" for image, wnid in zip(images, WNIDS, strict=True)]
        text, name = "\r\n".join(["ImageId,PredictionString", *rows]), "LOC_val_solution.csv"
    else:
        text, name = "\r\n".join(WNIDS), "imagenet_2012_validation_synset_labels.txt"
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    source = open_recipe(RECIPES["imagenet"], tmp_path, seed=0, allow_counts=True)
    assert source.classes == WNIDS
    assert [entry.label for entry in source.entries["val"]] == [0, 1]


def test_the_names_of_batches_are_brought_to_their_form(tmp_path: Path) -> None:
    names = [b"air plane\r\n", NFD.encode(), b"caf\xe9"]
    batch = {"data": np.zeros((3, 3072), dtype=np.uint8), "labels": [0, 1, 2]}
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    for file in ("data_batch_1", "test_batch"):
        (tmp_path / file).write_bytes(pickle.dumps(batch))
    found = cifar10(tmp_path).parts["train"]
    assert [image.name for image in found] == ["air plane", NFC, r"caf\xe9"]
