"""Which folders of a tree are splits (``train/``, ``validation/``), and which are classes.

A folder is called a split by a word in its name, in any case: ``train``, ``Training``,
``test_set``, ``val2017``, ``valid``, ``dev``, ``eval``. It may still be a class. The folders of
a tree are splits if

1. one called train holds class folders, and
2. one called val or test has a class in common with it, or holds images without class folders;
   or every folder with images is called a split.

Otherwise they are classes. A name with other words (``seg_train``, ``train_station``) is a
split's only beside another split with a class in common. Of the splits, val goes before test;
one without class folders has no labels and is left aside.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from srdd.class_names import normalise
from srdd.errors import UserError
from srdd_platform.data.tree import has_images, subfolders

Role = Literal["train", "val", "test"]

ROLES: dict[str, Role] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
FILLER = frozenset({"set", "data", "dataset", "split", "images", "imgs"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Folders of a tree's splits, relative to it. ``train`` is "" where the tree has none."""

    train: str = ""
    val: str = ""  # the one held out; "" where a share of train is
    aside: tuple[tuple[str, str], ...] = ()  # folders that are not used, each with why

    @property
    def roots(self) -> dict[str, str]:
        """Folder by split."""
        return {"train": self.train, **({"val": self.val} if self.val else {})}

    def rule(self, val_fraction: float) -> str:
        """The split in words."""
        if self.val:
            return f"{self.train}/ is trained on, {self.val}/ is held out"
        of = f" in {self.train}/" if self.train else ""
        return f"{val_fraction:.0%} of each class{of}, chosen by the seed, is held out"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    """A folder of a tree, looked at for splits."""

    name: str
    role: Role | None
    sure: bool  # no other word is in its name
    classes: frozenset[str]  # its folders that hold images
    images: bool  # in or below it

    @property
    def flat(self) -> bool:
        """Whether it holds images without class folders."""
        return self.images and not self.classes


def find_splits(path: Path) -> Splits:
    """The splits of a tree.

    Raises:
        UserError: its folders are called splits, and it is not clear what is trained on or held
            out; the message says what to do.
    """
    names = subfolders(path)
    if not any(_role(name)[0] for name in names):
        _refuse_a_wrapper(path, names)
        return Splits()
    folders = _settled([_look(path, name) for name in names])
    called = [folder for folder in folders if folder.role is not None]
    others = [folder for folder in folders if folder.images and folder.role is None]
    trains = [folder for folder in called if folder.role == "train" and folder.classes]
    held_out = [folder for folder in called if folder.role != "train"]
    if not trains:
        if called and not others:
            _refuse_without_train(path, called)
        return Splits()
    train = _only(path, trains)
    if others and not any(folder.flat or folder.classes & train.classes for folder in held_out):
        return Splits()
    return _chosen(path, train, held_out)


def _chosen(path: Path, train: _Folder, held_out: list[_Folder]) -> Splits:
    """The splits, where it is settled that there are some."""
    aside = [
        (folder.name, "it has no class folders, so no labels") for folder in held_out if folder.flat
    ]
    for wanted in ("val", "test"):
        having = [folder for folder in held_out if folder.role == wanted]
        if labelled := [folder for folder in having if folder.classes]:
            val = _only(path, labelled)
            aside += [
                (folder.name, f"{val.name}/ is held out instead")
                for folder in held_out
                if folder.classes and folder != val
            ]
            return Splits(train=train.name, val=val.name, aside=tuple(aside))
        if empty := [folder.name for folder in having if not folder.images]:
            raise UserError(f"{path / empty[0]} has no images: put class folders into it, or "
                            f"remove it to hold out a share of {train.name}/")  # fmt: skip
    return Splits(train=train.name, aside=tuple(aside))


def _role(name: str) -> tuple[Role | None, bool]:
    """What split a folder's name means, if any, and whether no other word is in it."""
    words = {word for word in re.split(r"[\W\d_]+", name.lower()) if word} - FILLER
    roles = {ROLES[word] for word in words if word in ROLES}
    return (roles.pop() if len(roles) == 1 else None), len(words) == 1


def _look(path: Path, name: str) -> _Folder:
    role, sure = _role(name)
    inner = subfolders(path / name)
    if len(inner) == 1 and role and _role(inner[0])[0] == role:  # training_set/training_set/
        name = f"{name}/{inner[0]}"
        inner = subfolders(path / name)
    classes = frozenset(normalise(sub) for sub in inner if role and has_images(path / name / sub))
    images = bool(classes) or has_images(path / name)
    return _Folder(name=name, role=role, sure=sure, classes=classes, images=images)


def _settled(folders: list[_Folder]) -> list[_Folder]:
    """The folders, of which those with other words in their names are splits in company alone."""
    return [
        folder
        if folder.sure or any(
            other.role not in (None, folder.role) and other.classes & folder.classes
            for other in folders
        )
        else replace(folder, role=None)
        for folder in folders
    ]  # fmt: skip


def _only(path: Path, folders: list[_Folder]) -> _Folder:
    if len(folders) > 1:
        names = " and ".join(f"{folder.name}/" for folder in folders)
        raise UserError(f"{path} has {names}, which mean the same split: merge them, or keep one")
    return folders[0]


def _refuse_without_train(path: Path, called: list[_Folder]) -> None:
    """Refuse folders that are all called splits, where none of them can be trained on."""
    names = ", ".join(f"{folder.name}/" for folder in called)
    if any(folder.classes for folder in called):
        raise UserError(f"{path} has {names} and no train/ with class folders: add it, or give "
                        "the folder whose class folders are to be split")  # fmt: skip
    if len(called) > 1:
        raise UserError(f"{path} has {names} without class folders: sort the images of each into "
                        "folders by class (one folder, if there is one class)")  # fmt: skip


def _refuse_a_wrapper(path: Path, names: list[str]) -> None:
    """Refuse a folder that only wraps one with splits, as an unpacked archive may."""
    if len(names) == 1 and (inner := find_splits(path / names[0])).train:
        raise UserError(f"{path} holds {names[0]}/ alone, which has {inner.train}/ in it: give "
                        f"{path / names[0]}")  # fmt: skip
