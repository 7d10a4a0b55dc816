"""Recipes: the paper's image sets, from the folders their sites hand out to its splits.

A recipe is one row of a table: how the folder is laid out, which images are trained on and which
are held out, and the counts that the published set gives, against which the folder is checked.
Every choice follows from the seed and from names alone, and is written into the manifest.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from srdd.errors import UserError
from srdd_platform.data import layouts
from srdd_platform.data.cifar import cifar10
from srdd_platform.data.layouts import Found, Listing
from srdd_platform.data.leftovers import Note, left_aside
from srdd_platform.data.sources import SPLITS, Entry, Source

Splits = dict[str, list[Found]]  # "train" and "val"


@dataclass(frozen=True, slots=True)
class Counts:
    """Classes and images of a set."""

    classes: int
    train: int
    val: int

    def __str__(self) -> str:
        classes = f"{self.classes:,} class{'' if self.classes == 1 else 'es'}"
        return f"{classes}, {self.train:,} training and {self.val:,} held-out images"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One image set."""

    name: str
    layout: Callable[[Path], Listing]
    looks: str  # the layout in words, for whoever gives another folder
    split: Callable[[Listing, int], Splits]  # (listing, seed)
    rule: str  # the split in words, for the manifest
    counts: tuple[Counts, ...]  # what the published versions give
    resolution: int = 256
    unconditional: bool = False  # the paper trains on it without labels


def as_given(listing: Listing, seed: int) -> Splits:
    """The site's own training part; its val/ is held out, or its test/ where there is no val/."""
    held_out = "val" if listing.parts.get("val") else "test"
    return {"train": list(listing.parts.get("train", ())), "val": list(_part(listing, held_out))}


def a_share(listing: Listing, seed: int, *, parts: int) -> Splits:
    """One image in ``parts`` of each class is held out, unless the site's parts share classes."""
    if listing.classes("train") & listing.classes("val", "test"):
        return as_given(listing, seed)
    return _hold_out(_by_class(listing.images), seed, parts)


def some_of_val(listing: Listing, seed: int, *, each: int) -> Splits:
    """``each`` images a class of the site's held-out part; the rest of that part is left out."""
    splits = as_given(listing, seed)
    chosen = [
        image
        for images in _by_class(splits["val"]).values()
        for image in seeded(images, seed)[:each]
    ]
    return {"train": splits["train"], "val": chosen}


def a_subset(listing: Listing, seed: int, *, classes: int, images: int, parts: int) -> Splits:
    """``classes`` of the classes with ``images`` images or more, and so many images of each."""
    full = {name: of for name, of in _by_class(listing.images).items() if len(of) >= images}
    names = sorted(full, key=lambda name: _draw(name, seed))[:classes]
    return _hold_out({name: seeded(full[name], seed)[:images] for name in sorted(names)},
                     seed, parts)  # fmt: skip


def the_last(listing: Listing, seed: int, *, parts: int) -> Splits:
    """The last of ``parts`` equal runs of the images, in their order."""
    images = listing.images
    first = len(images) - len(images) // parts
    return {"train": list(images[:first]), "val": list(images[first:])}


def seeded(images: list[Found], seed: int) -> list[Found]:
    """Images in a random order that follows from the seed and each one's place alone."""
    return sorted(images, key=lambda image: _draw(image.origin, seed))


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()


def _part(listing: Listing, part: str) -> tuple[Found, ...]:
    return listing.parts.get(part, ())


def _by_class(images: list[Found] | tuple[Found, ...]) -> dict[str, list[Found]]:
    by_class: dict[str, list[Found]] = {}
    for image in images:
        by_class.setdefault(image.name, []).append(image)
    return dict(sorted(by_class.items()))


def _hold_out(by_class: dict[str, list[Found]], seed: int, parts: int) -> Splits:
    splits: Splits = {"train": [], "val": []}
    for images in by_class.values():
        held_out = {image.origin for image in seeded(images, seed)[: len(images) // parts]}
        for image in sorted(images, key=lambda image: image.origin):
            splits["val" if image.origin in held_out else "train"].append(image)
    return splits


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="mini-imagenet",
            layout=layouts.mini_imagenet,
            looks="train.csv, val.csv and test.csv beside images/, or class folders",
            split=partial(a_share, parts=6),
            rule="the 100 classes of all parts together; of each class one image in six, chosen "
            "by the seed, is held out (parts that share classes are taken as they are)",
            counts=(Counts(100, 50_000, 10_000),),
        ),
        Recipe(
            name="sun397",
            layout=layouts.sun397,
            looks="SUN397/a/abbey/*.jpg, with nested classes",
            split=partial(a_subset, classes=175, images=150, parts=6),
            rule="175 of the classes with 150 images or more, and 150 images of each, chosen by "
            "the seed (the paper does not name them); one image in six is held out",
            counts=(Counts(175, 21_875, 4_375),),
        ),
        Recipe(
            name="ffhq",
            layout=layouts.ffhq,
            looks="images1024x1024/00000/00000.png, or numbered images alone",
            split=partial(the_last, parts=7),
            rule="the last seventh by number is held out, which is FFHQ's own validation set",
            counts=(Counts(1, 60_000, 10_000),),
            unconditional=True,
        ),
        Recipe(
            name="afhq",
            layout=layouts.class_tree,
            looks="train/ and val/ (or test/), each with cat/, dog/ and wild/",
            split=partial(some_of_val, each=100),
            rule="train/ is trained on; of val/ (or test/) 100 images a class, chosen by the "
            "seed, are held out and the others left out",
            counts=(Counts(3, 14_630, 300), Counts(3, 14_336, 300)),  # versions 1 and 2
            unconditional=True,
        ),
        Recipe(
            name="cifar10",
            layout=cifar10,
            looks="cifar-10-batches-py/, or train/ and test/ with ten class folders each",
            split=as_given,
            rule="the site's own: train and test",
            counts=(Counts(10, 50_000, 10_000),),
            resolution=32,
        ),
        Recipe(
            name="imagenet",
            layout=layouts.imagenet,
            looks="train/<wnid>/*.JPEG and val/, in class folders or flat with a table",
            split=as_given,
            rule="the site's own: train and val",
            counts=(Counts(1000, 1_281_167, 50_000),),
        ),
    )
}


def open_recipe(
    recipe: Recipe, path: Path | None, *, seed: int, allow_counts: bool = False
) -> Source:
    """List a recipe's folder and choose its images.

    Raises:
        UserError: no folder, another layout, or other counts than the published ones without
            ``allow_counts``.
    """
    if path is None:
        raise UserError(f"recipe {recipe.name} needs a path: the folder its site hands out "
                        f"({recipe.looks})")  # fmt: skip
    try:
        listing = recipe.layout(path)
    except UserError as error:
        raise UserError(f"{error}; recipe {recipe.name} takes {recipe.looks}") from None
    splits = recipe.split(listing, seed)
    classes = tuple(sorted({image.name for image in splits["train"]}))
    rule = _checked_rule(recipe, path, splits, classes, allow_counts=allow_counts)
    labels = {name: label for label, name in enumerate(classes)}

    def notes() -> list[Note]:
        used = {image.origin for images in splits.values() for image in images}
        return left_aside(listing.root, used) if listing.root else []

    return Source(
        kind=recipe.name,
        classes=classes,
        entries={
            split: tuple(Entry(labels[image.name], image.origin) for image in splits[split])
            for split in SPLITS
        },
        listing=listing.digest,
        read=listing.read,
        rule=rule,
        unconditional=recipe.unconditional,
        notes=notes,
    )


def _checked_rule(
    recipe: Recipe, path: Path, splits: Splits, classes: tuple[str, ...], *, allow_counts: bool
) -> str:
    """How the images were chosen, for the manifest.

    Raises:
        UserError: as :func:`open_recipe`.
    """
    found = Counts(len(classes), len(splits["train"]), len(splits["val"]))
    published = " or ".join(str(counts) for counts in recipe.counts)
    if not found.train or not found.val:
        raise UserError(f"{path} gives {found}; recipe {recipe.name} takes {recipe.looks}, of the "
                        f"whole set ({published})")  # fmt: skip
    if unknown := sorted({image.name for image in splits["val"]} - set(classes)):
        raise UserError(f"{path} holds out class {unknown[0]!r}, which is not trained on: rename "
                        "or remove it")  # fmt: skip
    if found in recipe.counts:
        return recipe.rule
    if not allow_counts:
        raise UserError(f"{path} gives {found}, recipe {recipe.name} expects {published}: "
                        "complete the folder, or go on with what is there by "
                        "--allow-counts")  # fmt: skip
    return f"{recipe.rule}; not the published set: {found} instead of {published}"
