"""Layouts: public image sets as their sites hand them out, listed without reading a pixel.

Each layout is a function from the folder that a person unpacked to a :class:`Listing`. It also
finds its folder one step below (``SUN397/``, ``afhq/``), and raises UserError where it does not.
CIFAR-10's layout is in :mod:`srdd_platform.data.cifar`.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from srdd.class_names import classes_of_folders, normalise, readable
from srdd.errors import UserError
from srdd_platform.core.files import read_text
from srdd_platform.data.sources import Reader, tree_reader
from srdd_platform.data.tree import images_below, subfolders

PARTS = ("train", "val", "test")
ALL = "all"  # the part of images that have none
SYNSETS = "imagenet_2012_validation_synset_labels.txt"
SOLUTION = "LOC_val_solution.csv"


@dataclass(frozen=True, slots=True)
class Found:
    """One image: its class and its place in the source."""

    name: str
    origin: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What a layout found, before any choice of classes or split."""

    parts: dict[str, tuple[Found, ...]]  # by the site's own parts ("train", ...), in sorted order
    digest: str  # hash of names and sizes
    read: Reader
    root: Path | None = None  # the folder that images are relative to, if they are files

    @property
    def images(self) -> tuple[Found, ...]:
        """All parts together."""
        return tuple(image for part in self.parts.values() for image in part)

    def classes(self, *parts: str) -> set[str]:
        """Names of the classes in some parts; without names, in all."""
        chosen = parts or tuple(self.parts)
        return {image.name for part in chosen for image in self.parts.get(part, ())}


Row = tuple[str, str, str, int]  # part, class, origin, bytes


def listed(rows: Iterable[Row], root: Path) -> Listing:
    """Rows of image files below ``root``, as a listing; the classes' names in their one form.

    Raises:
        UserError: a name cannot be written as UTF-8, or two of one part are one class.
    """
    hashed = hashlib.sha256()
    parts: dict[str, list[Found]] = {}
    given: dict[str, set[str]] = {}
    for part, name, origin, size in rows:
        parts.setdefault(part, []).append(Found(readable(name), origin))
        given.setdefault(part, set()).add(name)
        hashed.update(os.fsencode(f"{part}\0{name}\0{origin}\0{size}\n"))
    for part, names in given.items():
        classes_of_folders(sorted(names), str(root if part == ALL else root / part))
    return Listing(
        parts={part: tuple(images) for part, images in parts.items()},
        digest=hashed.hexdigest()[:16],
        read=tree_reader(root),
        root=root,
    )


def class_tree(path: Path) -> Listing:
    """``train|val|test/<class>/*.jpg``: CIFAR-10 as images; AFHQ, with cat, dog and wild.

    A missing part is left out, and so is any other folder.
    """
    root = _root(path, "afhq", "afhq_v2", "cifar10", "cifar-10", inside=("train",))
    return listed(_class_rows(root), root)


def mini_imagenet(path: Path) -> Listing:
    """``train.csv``, ``val.csv``, ``test.csv`` (``filename,label``) beside ``images/``.

    Or class folders, below ``train|val|test/`` or in ``path`` itself (their part is then "all").
    A row of a table whose image is not there is left out.
    """
    root = _root(path, "mini-imagenet", "miniImageNet", inside=("train.csv", "train", ""))
    if not (root / "train.csv").is_file():
        if (root / "train").is_dir():
            return listed(_class_rows(root), root)
        return listed(
            (
                (ALL, name, *image)
                for name in subfolders(root)
                for image in images_below(root / name, name)
            ),
            root,
        )
    if not (root / "images").is_dir():
        raise UserError(f"{root} has train.csv but no images/: put the images there")
    images = {
        normalise(os.path.basename(image[0])): image
        for image in images_below(root / "images", "images")
    }

    def rows() -> Iterator[Row]:
        for part in PARTS:
            table = root / f"{part}.csv"
            if not table.is_file():
                continue
            for file, name in sorted(_table(table, ("filename", "label"))):
                if file in images:
                    yield part, name, *images[file]

    return listed(rows(), root)


def sun397(path: Path) -> Listing:
    """``SUN397/<letter>/<class>/*.jpg``, where a class may have a level more.

    ``a/abbey`` is class ``abbey``; ``a/apartment_building/outdoor`` is
    ``apartment_building/outdoor``: a class is a folder that holds images. The lists in
    ``Partitions/`` are not read: they name 50 + 50 images a class.
    """
    root = _root(path, "SUN397", inside=())

    def rows() -> Iterator[Row]:
        for letter in subfolders(root):
            if len(letter) == 1:
                for origin, size in images_below(root / letter, letter):
                    yield ALL, origin.split("/", 1)[1].rpartition("/")[0], origin, size

    return listed((row for row in rows() if row[1]), root)


def ffhq(path: Path) -> Listing:
    """``images1024x1024/00000/00000.png ...``, or ``thumbnails128x128/``, or the numbers alone.

    One class, ``face``; the images are in the order of their file names, which are numbers.
    """
    root = _root(path, "images1024x1024", "thumbnails128x128", inside=())
    found = sorted(images_below(root, ""), key=lambda image: (os.path.basename(image[0]), image[0]))
    return listed(((ALL, "face", origin, size) for origin, size in found), root)


def imagenet(path: Path) -> Listing:
    """ILSVRC2012: ``train/<wnid>/*.JPEG``, and ``val/<wnid>/*.JPEG`` or ``val/*.JPEG``.

    A flat ``val/`` needs a table, beside ``train/``, in ``val/`` or in ``path``: Kaggle's
    ``LOC_val_solution.csv`` (``ImageId,PredictionString``), or
    ``imagenet_2012_validation_synset_labels.txt`` (line i is the wnid of image i). Below ``path``
    the folders may also lie in Kaggle's ``ILSVRC/Data/CLS-LOC/``. Classes are wnids.
    """
    root = _root(path, "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", inside=("train",))
    if not (root / "val").is_dir() or subfolders(root / "val"):
        return listed(_class_rows(root, ("train", "val")), root)
    images = list(images_below(root / "val", "val"))
    wnids = _val_wnids([root, root / "val", path], [os.path.basename(o) for o, _ in images])

    def rows() -> Iterator[Row]:
        yield from _class_rows(root, ("train",))
        for (origin, size), wnid in zip(images, wnids, strict=True):
            yield "val", wnid, origin, size

    return listed(rows(), root)


def _val_wnids(places: list[Path], names: list[str]) -> list[str]:
    """The wnid of each validation image, by its file name."""
    for place in places:
        if (place / SOLUTION).is_file():
            columns = ("ImageId", "PredictionString")
            lines = _table(place / SOLUTION, columns)
            of = {image: text.split()[0] for image, text in lines if text.split()}
            wnids = [of.get(os.path.splitext(name)[0], "") for name in names]
        elif (place / SYNSETS).is_file():
            synsets = read_text(place / SYNSETS).split()
            numbers = [os.path.splitext(name)[0].rpartition("_")[2] for name in names]
            wnids = [
                synsets[int(number) - 1] if number.isdecimal() and 0 < int(number) <= len(synsets)
                else "" for number in numbers
            ]  # fmt: skip
        else:
            continue
        if "" in wnids:
            raise UserError(f"{place} has no class for {names[wnids.index('')]}: take the table "
                            "that belongs to the images")  # fmt: skip
        return wnids
    raise UserError(f"{places[1]} has no class folders: put {SOLUTION} or {SYNSETS} beside it, or "
                    "sort the images into folders")  # fmt: skip


def _class_rows(root: Path, parts: tuple[str, ...] = PARTS) -> Iterator[Row]:
    for part in parts:
        if not (root / part).is_dir():
            continue
        for name in subfolders(root / part):
            for origin, size in images_below(root / part / name, f"{part}/{name}"):
                yield part, name, origin, size


def _table(path: Path, columns: tuple[str, str]) -> list[tuple[str, str]]:
    """Two columns of a table with a header, between commas, semicolons or tabs.

    Raises:
        UserError: it has other columns, a row has no entry in one, or it is not text.
    """
    text = read_text(path)
    header = text.partition("\n")[0]
    table = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    rows: list[tuple[str, str]] = []
    try:
        names = [normalise(cell) for cell in next(table, [])]
        first, second = (names.index(column) for column in columns)
        for row in table:
            cells = [normalise(cell) for cell in row]
            if not any(cells):  # a blank line
                continue
            if len(cells) <= max(first, second) or not cells[first] or not cells[second]:
                raise UserError(f"{path} has no {' or '.join(columns)} in line {table.line_num}: "
                                "complete or remove it")  # fmt: skip
            rows.append((cells[first], cells[second]))
    except (ValueError, csv.Error):
        raise UserError(f"{path} has no columns {','.join(columns)}") from None
    return rows


def _root(path: Path, *below: str, inside: tuple[str, ...]) -> Path:
    """``path`` or the folder below it that holds one of ``inside`` (anything, if there is none).

    Without ``inside`` the first of ``below`` that exists is taken, else ``path``.
    """
    if not path.is_dir():
        wrong = "is a file: unpack it first" if path.exists() else "does not exist"
        raise UserError(f"{path} {wrong}")
    candidates = [path / name for name in below if (path / name).is_dir()]
    if not inside:
        return candidates[0] if candidates else path
    for name in inside:
        for root in (path, *candidates):
            if (root / name).exists():
                return root
    raise UserError(f"{path} has no {' or '.join(name for name in inside if name)}")
