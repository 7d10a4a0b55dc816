"""Where images come from: scikit-learn's digits, or a folder of class folders.

A source lists what there is (paths alone, never pixels) and hands out items lazily, in a seeded
shuffled order: shards sorted by class would hurt every reader that streams them.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from srdd.class_names import classes_of_folders
from srdd.errors import UserError
from srdd_platform.data.leftovers import Note, left_aside, listed, nested, unread_tables
from srdd_platform.data.pixels import Loaded, load_image, stored_side
from srdd_platform.data.splits import find_splits
from srdd_platform.data.tree import images_below, subfolders

SPLITS = ("train", "val")
SPLIT_DRAWS, ORDER_DRAWS, EPOCH_DRAWS = 1, 2, 3  # so that no two uses share their draws
AUGMENT_DRAWS, VIEW_DRAWS = 4, 5


class Reader(Protocol):
    """Reads one image of a source; see :func:`srdd_platform.data.pixels.fit` for ``keep``."""

    def __call__(self, origin: str, resolution: int, keep: float = 1.0) -> Loaded:
        """Return an image with pixels [R, R, 3], or raise BadImageError."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """One image to come. ``load()`` returns pixels [R, R, 3] or raises BadImageError."""

    split: str
    label: int
    origin: str  # relative to the source: "train/cat/001.jpg", "digits/0042"
    load: Callable[[], Loaded]


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed image: its class index and its place in the source."""

    label: int
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A listed source."""

    kind: str
    classes: tuple[str, ...]
    entries: dict[str, tuple[Entry, ...]]  # split -> images, in sorted order
    listing: str  # hash of names and sizes: another value means other files
    read: Reader
    rule: str = ""  # how images, classes and split were chosen
    unconditional: bool = False  # trained without labels
    notes: Callable[[], list[Note]] = list  # looks for what is not used

    def __len__(self) -> int:
        return sum(len(entries) for entries in self.entries.values())

    def items(self, *, seed: int, resolution: int, keep: float = 1.0) -> Iterator[Item]:
        """Yield all images of train, then of val, each split in its own shuffled order."""
        for number, split in enumerate(SPLITS):
            entries = self.entries[split]
            for i in permutation(len(entries), seed, ORDER_DRAWS, number):
                entry = entries[i]
                load = partial(self.read, entry.origin, resolution, keep)
                yield Item(split, entry.label, entry.origin, load)


def permutation(n: int, seed: int, use: int, number: int = 0) -> npt.NDArray[np.int64]:
    """A shuffle of range(n), the same on every machine and under every numpy version.

    It sorts the raw counter stream of Philox, which numpy keeps fixed (its own shuffles it may
    change). ``use`` and ``number`` set shuffles of one seed apart. Returns int64 [n].
    """
    key = np.array([seed, (use << 32) + number], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable").astype(np.int64)


def open_source(kind: str, path: Path | None, *, seed: int, val_fraction: float) -> Source:
    """List a source.

    Raises:
        UserError: an unknown kind, a missing path, no classes, an empty class.
    """
    if kind == "digits":
        if path is not None:
            raise UserError("source digits comes with scikit-learn and takes no path: leave it out")
        return digits(seed=seed, val_fraction=val_fraction)
    if kind == "folder":
        if path is None:
            raise UserError("source folder needs a path: the folder that holds the class folders")
        return folder(path, seed=seed, val_fraction=val_fraction)
    raise UserError(f"unknown source {kind!r}: choose digits or folder")


def digits(*, seed: int, val_fraction: float) -> Source:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)  # [1797, 8, 8]
    labels = [int(label) for label in bunch.target]

    def read(origin: str, resolution: int, keep: float = 1.0) -> Loaded:
        image = Image.fromarray(images[int(origin.rpartition("/")[2])])
        side = stored_side(resolution, keep)
        if side != image.width:
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return Loaded(np.asarray(image.convert("RGB")))

    return Source(
        kind="digits",
        classes=tuple(str(digit) for digit in range(10)),
        entries=_split(
            [Entry(label, f"digits/{i:04d}") for i, label in enumerate(labels)], val_fraction, seed
        ),
        listing=hashlib.sha256(images.tobytes()).hexdigest()[:16],
        read=read,
    )


def folder(path: Path, *, seed: int, val_fraction: float) -> Source:
    """A tree of class folders, below the folders of its splits where it has some.

    :mod:`srdd_platform.data.splits` says which folders are splits. Where none is held out, a
    share of each class is. An image in a folder inside a class folder counts for the class.

    Raises:
        UserError: no class folders, or one without images.
    """
    if not path.is_dir():
        wrong = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {wrong}: give the folder that holds the class folders")
    found = find_splits(path)
    classes, entries, listing = _list_folder(path, found.roots)
    if "val" in entries:
        split_entries = {split: tuple(entries[split]) for split in SPLITS}
    else:
        split_entries = _split(entries["train"], val_fraction, seed)

    def notes() -> list[Note]:
        used = {entry.origin for split in entries.values() for entry in split}
        single = [] if found.val else _single(classes, entries["train"])
        tables = unread_tables(path) if len(classes) == 1 else []
        deep = nested(used, found.roots.values())
        return [*left_aside(path, used, found.aside), *tables, *deep, *single]

    return Source(
        kind="folder",
        classes=classes,
        entries=split_entries,
        listing=listing,
        read=tree_reader(path),
        rule=found.rule(val_fraction),
        notes=notes,
    )


def _list_folder(
    path: Path, roots: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, list[Entry]], str]:
    """The classes of a tree, the images of each split, and a hash of their names and sizes.

    Args:
        path: the tree.
        roots: the folder of each split below it; "" is the tree itself.

    Raises:
        UserError: no class folders, one without images, or one that training images lack.
    """
    folders = {
        split: classes_of_folders(subfolders(path / root), str(path / root))
        for split, root in roots.items()
    }
    classes = tuple(folders["train"])
    if not classes:
        raise UserError(f"{path / roots['train']} has no class folders: put each class's images "
                        "into a folder of its own (one folder, if there is one class)")  # fmt: skip
    labels = {name: label for label, name in enumerate(classes)}
    listing = hashlib.sha256()
    entries: dict[str, list[Entry]] = {split: [] for split in roots}
    for split, root in roots.items():
        if unknown := sorted(folders[split].keys() - set(classes)):
            raise UserError(f"{path / root} has class {unknown[0]!r}, which {roots['train']} does "
                            "not have: rename or remove it")  # fmt: skip
        for name, below in folders[split].items():
            images = list(images_below(path / root / below, f"{root}/{below}" if root else below))
            if not images:
                raise UserError(_without_images(path / root / below))
            for origin, size in images:
                entries[split].append(Entry(labels[name], origin))
                listing.update(os.fsencode(f"{split}\0{origin}\0{size}\n"))
    return classes, entries, listing.hexdigest()[:16]


def _single(classes: Sequence[str], entries: Sequence[Entry]) -> list[Note]:
    """Classes of which no image can be held out."""
    counts = np.bincount([entry.label for entry in entries])
    found = {name: 1 for name, num in zip(classes, counts, strict=True) if num == 1}
    return listed(found, f"class{'es' * (len(found) != 1)} with one image, not held out")


def _without_images(path: Path) -> str:
    """Why a class folder is refused, with what it holds instead."""
    inside = "; ".join(map(str, left_aside(path, ())))
    return (f"class folder {path} has no images{inside and f' ({inside})'}: remove it or add "
            "some")  # fmt: skip


def tree_reader(root: Path) -> Reader:
    """Reads image files by their place below ``root``."""

    def read(origin: str, resolution: int, keep: float = 1.0) -> Loaded:
        return load_image(root / origin, resolution, keep)

    return read


def stratified(labels: Sequence[int], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose ``ceil(fraction * n)`` of n samples, the same share of every class.

    Shares are rounded by the largest remainder. A class of two or more gives at least one sample
    and keeps at least one; a class of one keeps it. Returns bool [n], true where chosen.
    """
    labels_n = np.asarray(labels, dtype=np.int64)
    counts_C = np.bincount(labels_n)
    shares_C = fraction * counts_C
    quota_C = np.floor(shares_C).astype(np.int64)
    short = int(np.ceil(fraction * len(labels_n) - 1e-9)) - int(quota_C.sum())
    quota_C[np.argsort(quota_C - shares_C, kind="stable")[:short]] += 1
    quota_C = np.clip(quota_C, np.minimum(1, counts_C // 2), np.maximum(counts_C - 1, 0))
    order_n = permutation(len(labels_n), seed, SPLIT_DRAWS)
    chosen_n = np.zeros(len(labels_n), dtype=np.bool_)
    for label, quota in enumerate(quota_C):
        chosen_n[order_n[labels_n[order_n] == label][:quota]] = True
    return chosen_n


def _split(entries: list[Entry], fraction: float, seed: int) -> dict[str, tuple[Entry, ...]]:
    chosen_n = stratified([entry.label for entry in entries], fraction, seed)
    pairs = list(zip(entries, chosen_n, strict=True))
    return {
        "train": tuple(entry for entry, chosen in pairs if not chosen),
        "val": tuple(entry for entry, chosen in pairs if chosen),
    }
