"""Recipes on small trees in each site's layout: classes, splits, counts, and what is refused."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srdd.errors import UserError
from srdd_platform.data.dataset import load_arrays
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.recipes import RECIPES, Counts, Recipe, a_subset, open_recipe
from srdd_platform.data.shards import prepare
from srdd_platform.data.sources import Source

WNIDS = ("n01440764", "n02085620", "n03887697")


def put(root: Path, *names: str) -> None:
    """Small images, each of its own colour."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        color = tuple(
            int(x) for x in np.random.default_rng(list(name.encode())).integers(256, size=3)
        )
        Image.new("RGB", (12, 10), color).save(path, format="PNG")


def source(name: str, path: Path, seed: int = 0) -> Source:
    return open_recipe(RECIPES[name], path, seed=seed, allow_counts=True)


def origins(source: Source, split: str) -> list[str]:
    return [entry.origin for entry in source.entries[split]]


def by_class(source: Source, split: str) -> dict[str, int]:
    labels = [entry.label for entry in source.entries[split]]
    return {name: labels.count(i) for i, name in enumerate(source.classes)}


def test_the_table_is_the_papers() -> None:
    assert {name: recipe.counts[0] for name, recipe in RECIPES.items()} == {
        "mini-imagenet": Counts(100, 50_000, 10_000),
        "sun397": Counts(175, 21_875, 4_375),
        "ffhq": Counts(1, 60_000, 10_000),
        "afhq": Counts(3, 14_630, 300),
        "cifar10": Counts(10, 50_000, 10_000),
        "imagenet": Counts(1000, 1_281_167, 50_000),
    }
    assert {name: recipe.resolution for name, recipe in RECIPES.items()} == {
        **dict.fromkeys(RECIPES, 256), "cifar10": 32,
    }  # fmt: skip
    assert {name for name, recipe in RECIPES.items() if recipe.unconditional} == {"ffhq", "afhq"}


def mini_tables(root: Path) -> None:
    for part, wnid in zip(("train", "val", "test"), WNIDS, strict=True):
        names = [f"{wnid}{i:08d}.jpg" for i in range(12)]
        put(root / "images", *names)
        rows = "".join(f"{name},{wnid}\n" for name in names)
        (root / f"{part}.csv").write_text(f"filename,label\n{rows}")


def test_mini_imagenet_as_tables(tmp_path: Path) -> None:
    """The site's parts hold different classes: all are pooled, a sixth of each is held out."""
    mini_tables(tmp_path)
    found = source("mini-imagenet", tmp_path)
    assert found.classes == WNIDS
    assert by_class(found, "train") == dict.fromkeys(WNIDS, 10)
    assert by_class(found, "val") == dict.fromkeys(WNIDS, 2)
    both = origins(found, "train") + origins(found, "val")
    assert sorted(both) == [f"images/{w}{i:08d}.jpg" for w in WNIDS for i in range(12)]
    assert origins(source("mini-imagenet", tmp_path), "val") == origins(found, "val")
    assert origins(source("mini-imagenet", tmp_path, seed=1), "val") != origins(found, "val")


def test_a_row_without_its_image_does_not_count(tmp_path: Path) -> None:
    mini_tables(tmp_path)
    (tmp_path / "images" / f"{WNIDS[0]}00000003.jpg").unlink()
    assert len(source("mini-imagenet", tmp_path)) == 35


@pytest.mark.parametrize("parts", [("train", "val", "test"), ("", "", "")])
def test_mini_imagenet_as_folders(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part, wnid in zip(parts, WNIDS, strict=True):
        put(tmp_path / "mini" / part / wnid, *(f"{i}.jpg" for i in range(6)))
    found = source("mini-imagenet", tmp_path / "mini")
    assert by_class(found, "train") == dict.fromkeys(WNIDS, 5)
    assert by_class(found, "val") == dict.fromkeys(WNIDS, 1)


def test_a_mini_imagenet_split_by_class_is_kept(tmp_path: Path) -> None:
    for wnid in WNIDS:
        put(tmp_path / "train" / wnid, "0.jpg", "1.jpg")
        put(tmp_path / "val" / wnid, "2.jpg")
    found = source("mini-imagenet", tmp_path)
    assert origins(found, "val") == [f"val/{wnid}/2.jpg" for wnid in WNIDS]
    assert by_class(found, "train") == dict.fromkeys(WNIDS, 2)


SMALL_SUN = replace(
    RECIPES["sun397"],
    split=partial(a_subset, classes=3, images=12, parts=6),
    counts=(Counts(3, 30, 6),),
)


@pytest.fixture
def sun(tmp_path: Path) -> Path:
    """Eight classes of 13 or 14 images and one of 11, two of them nested."""
    names = ["a/abbey", "a/apartment_building/outdoor", "b/bakery/shop", "b/bar", "c/cafe",
             "c/canyon", "d/dam", "z/zoo"]  # fmt: skip
    for i, name in enumerate(names):
        put(tmp_path / "SUN397" / name, *(f"sun_{j:02d}.jpg" for j in range(13 + i % 2)))
    put(tmp_path / "SUN397/e/elevator", *(f"sun_{j:02d}.jpg" for j in range(11)))
    (tmp_path / "SUN397" / "README.txt").write_text("SUN397")
    return tmp_path


def test_sun_classes_follow_from_the_seed(sun: Path) -> None:
    choices = {seed: open_recipe(SMALL_SUN, sun, seed=seed).classes for seed in (*range(8), 0)}
    full = {"abbey", "apartment_building/outdoor", "bakery/shop", "bar", "cafe", "canyon", "dam",
            "zoo"}  # fmt: skip
    assert len(set(choices.values())) > 3
    for chosen in choices.values():
        assert len(chosen) == 3
        assert list(chosen) == sorted(chosen)
        assert set(chosen) <= full  # elevator has too few images
    # which are chosen does not depend on the classes that are not
    (left_out,) = [name for name in ("dam", "zoo") if name not in choices[0]][:1]
    shutil.rmtree(sun / "SUN397" / left_out[0] / left_out)
    assert open_recipe(SMALL_SUN, sun, seed=0).classes == choices[0]


def test_sun_images_and_choice_are_in_the_manifest(sun: Path, tmp_path: Path) -> None:
    manifest = prepare(source=SMALL_SUN, path=sun / "SUN397", resolution=8, out=tmp_path / "out",
                       seed=5)  # fmt: skip
    assert manifest.classes == open_recipe(SMALL_SUN, sun, seed=5).classes
    assert [split.num for split in manifest.splits.values()] == [30, 6]
    assert set(manifest.splits["train"].per_class.values()) == {10}
    assert set(manifest.splits["val"].per_class.values()) == {2}
    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (stored["source"], stored["settings"]["seed"]) == ("sun397", 5)
    assert stored["rule"] == SMALL_SUN.rule
    assert Manifest.load(tmp_path / "out") == manifest


@pytest.mark.parametrize("below", ["images1024x1024", "thumbnails128x128", ""])
def test_ffhq_is_one_class_split_by_number(tmp_path: Path, below: str) -> None:
    names = [f"{i // 4:02d}000/{i:05d}.png" for i in range(14)]
    put(tmp_path / below, *names)
    (tmp_path / "LICENSE.txt").write_text("CC")
    found = source("ffhq", tmp_path)
    assert found.classes == ("face",)
    assert found.unconditional
    assert origins(found, "train") == names[:12]
    assert origins(found, "val") == names[12:]


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_afhq_holds_out_a_hundred_of_each(tmp_path: Path, held_out: str) -> None:
    for name, more in (("cat", 3), ("dog", 0), ("wild", 1)):
        (tmp_path / "afhq" / "train" / name).mkdir(parents=True)
        (tmp_path / "afhq" / held_out / name).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "afhq" / "train" / name / f"{i}.jpg").touch()
        for i in range(100 + more):
            (tmp_path / "afhq" / held_out / name / f"{i:03d}.jpg").touch()
    found = source("afhq", tmp_path)
    assert found.classes == ("cat", "dog", "wild")
    assert by_class(found, "train") == dict.fromkeys(found.classes, 2)
    assert by_class(found, "val") == dict.fromkeys(found.classes, 100)
    assert all(origin.startswith(f"{held_out}/") for origin in origins(found, "val"))
    assert found.unconditional


def test_imagenet_in_folders(tmp_path: Path) -> None:
    for wnid in WNIDS:
        put(tmp_path / "ILSVRC2012" / "train" / wnid, f"{wnid}_1.JPEG", f"{wnid}_2.JPEG")
        put(tmp_path / "ILSVRC2012" / "val" / wnid, "ILSVRC2012_val_00000001.JPEG")
        put(tmp_path / "ILSVRC2012" / "test", "ILSVRC2012_test_00000001.JPEG")
    found = source("imagenet", tmp_path)
    assert found.classes == WNIDS
    assert by_class(found, "train") == dict.fromkeys(WNIDS, 2)
    assert by_class(found, "val") == dict.fromkeys(WNIDS, 1)


FLAT = [(f"ILSVRC2012_val_{i:08d}", WNIDS[label]) for i, label in enumerate((2, 0, 0, 1), start=1)]


@pytest.mark.parametrize("kaggle", [True, False])
def test_imagenet_with_flat_validation(tmp_path: Path, kaggle: bool) -> None:
    root = tmp_path / "ILSVRC/Data/CLS-LOC" if kaggle else tmp_path
    for wnid in WNIDS:
        put(root / "train" / wnid, f"{wnid}_1.JPEG")
    put(root / "val", *(f"{image}.JPEG" for image, _ in FLAT))
    with pytest.raises(UserError, match=r"val has no class folders: put LOC_val_solution\.csv or"):
        source("imagenet", tmp_path)
    if kaggle:
        rows = "".join(f"{image},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n" for image, wnid in FLAT[::-1])
        (tmp_path / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}")
    else:
        text = "".join(f"{wnid}\n" for _, wnid in FLAT)
        (root / "imagenet_2012_validation_synset_labels.txt").write_text(text)
    found = source("imagenet", tmp_path)
    assert [(e.origin, found.classes[e.label]) for e in found.entries["val"]] == [
        (f"val/{image}.JPEG", wnid) for image, wnid in FLAT
    ]
    assert by_class(found, "train") == dict.fromkeys(WNIDS, 1)


def test_a_table_of_other_images_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "train" / WNIDS[0], "1.JPEG")
    put(tmp_path / "val", "ILSVRC2012_val_00000007.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n")
    with pytest.raises(UserError, match=r"has no class for ILSVRC2012_val_00000007\.JPEG"):
        source("imagenet", tmp_path)
    (tmp_path / "LOC_val_solution.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no columns ImageId,PredictionString"):
        source("imagenet", tmp_path)


def cifar_tree(root: Path) -> Path:
    for name in "abcdefghij":
        put(root / "train" / name, "0.jpg", "1.jpg")
        put(root / "test" / name, "0.jpg")
    return root


def test_counts_that_differ_are_refused_and_can_be_allowed(tmp_path: Path) -> None:
    tree = cifar_tree(tmp_path / "tree")
    out = tmp_path / "out"
    with pytest.raises(
        UserError,
        match="tree gives 10 classes, 20 training and 10 held-out images, recipe cifar10 expects "
        "10 classes, 50,000 training and 10,000 held-out images: complete the folder, or go on "
        "with what is there by --allow-counts",
    ):
        prepare(source=RECIPES["cifar10"], path=tree, resolution=8, out=out)
    assert not out.exists()
    manifest = prepare(
        source=RECIPES["cifar10"], path=tree, resolution=8, out=out, allow_counts=True
    )
    assert [split.num for split in manifest.splits.values()] == [20, 10]
    assert manifest.rule.startswith("the site's own: train and test; not the published set: 10 cl")
    assert not manifest.unconditional


def test_an_unconditional_set_says_so(tmp_path: Path) -> None:
    put(tmp_path / "in", *(f"{i:05d}.png" for i in range(7)))
    recipe = replace(RECIPES["ffhq"], counts=(Counts(1, 6, 1),))
    manifest = prepare(source=recipe, path=tmp_path / "in", resolution=8, out=tmp_path / "out")
    assert manifest.unconditional
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["unconditional"] is True
    assert Manifest.load(tmp_path / "out").unconditional
    assert load_arrays(tmp_path / "out", "val")[1].tolist() == [0]


def test_other_sources_keep_their_manifest(tmp_path: Path) -> None:
    """No new field where nothing is new: shards made earlier are found again."""
    prepare(source="digits", resolution=8, out=tmp_path / "out", workers=1)
    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(stored) == [
        "format", "source", "resolution", "settings", "classes", "splits", "skipped",
    ]  # fmt: skip
    assert list(stored["settings"]) == ["seed", "val_fraction", "shard_size_images", "listing"]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_another_folder_is_refused_with_what_is_expected(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.tar").touch()
    for path, wrong in [
        (None, "needs a path"),
        (tmp_path / "nowhere", "nowhere does not exist"),
        (tmp_path / "file.tar", "unpack it first"),
        (tmp_path / "notes", "notes "),
    ]:
        with pytest.raises(UserError, match=wrong) as caught:
            open_recipe(recipe, path, seed=0, allow_counts=True)
        assert recipe.looks in str(caught.value)
        assert "\n" not in str(caught.value)
