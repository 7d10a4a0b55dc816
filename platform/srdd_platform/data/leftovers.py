"""What of a tree is not used, counted by kind, so that nothing is left aside without a word."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from srdd.class_names import escaped
from srdd_platform.data.formats import REMEDIES
from srdd_platform.data.tree import entries_below, extension, is_hidden, is_image

SHOWN = 4  # names in a line
_TABLES = frozenset({".csv", ".tsv", ".jsonl", ".parquet", ".xlsx"})


@dataclass(frozen=True, slots=True)
class Note:
    """A remark on the images of a source."""

    num: int
    text: str  # what was counted, and why

    def __str__(self) -> str:
        return f"{self.num:,} {self.text}"


def left_aside(
    root: Path, used: Collection[str], aside: Sequence[tuple[str, str]] = ()
) -> list[Note]:
    """Count what lies below a folder and is not used.

    Args:
        root: the folder.
        used: the images that are, relative to it.
        aside: folders left aside as a whole, each with the reason.
    """
    images, unread, others, hidden = (Counter[str]() for _ in range(4))
    broken = 0
    for place, entry in entries_below(root, ""):
        if place in used:
            continue
        end = extension(entry.name)
        if is_hidden(entry.name):
            hidden[entry.name] += 1
        elif is_image(entry):
            images[_folder(place, aside)] += 1
        elif entry.is_symlink() and not entry.is_file():
            broken += 1
        elif end in REMEDIES:
            unread[end] += 1
        else:
            others[end or "without an extension"] += 1
    return [
        *_images(images, dict(aside)),
        *(
            Note(num, f"{end} {_noun('file', num)}, not read: {REMEDIES[end]}")
            for end, num in sorted(unread.items())
        ),
        *listed(others, "of other kinds"),
        *listed(hidden, "hidden or of the system"),
        *([Note(broken, _noun("broken link", broken))] if broken else []),
    ]


def nested(used: Collection[str], roots: Collection[str]) -> list[Note]:
    """Count the images that lie deeper than their class folder, whose class they are given.

    Args:
        used: the images, relative to the source.
        roots: the folders that hold the class folders, relative to the source; "" for itself.
    """
    deepest = {root: root.count("/") + 2 if root else 1 for root in roots}
    deep = [
        place
        for place in used
        for root, depth in deepest.items()
        if place.startswith(f"{root}/" if root else "") and place.count("/") > depth
    ]
    if not deep:
        return []
    folder = escaped(os.path.dirname(min(deep)))
    what = f"{_noun('image', len(deep))} in folders inside class folders, such as {folder}/"
    inner = {tuple(place.split("/")[:2]) for place in deep}
    if set(roots) == {""} and len(deep) == len(used) and len({top for top, _ in inner}) == 1:
        (top,) = {top for top, _ in inner}
        if len(inner) > 1:  # an archive's own folder, and the classes below it
            what += f" (are these the classes? then --path ends with {escaped(top)})"
    return [Note(len(deep), f"{what}: taken for their class")]


def unread_tables(root: Path) -> list[Note]:
    """Count the files below a folder that may hold labels: worth a word where all is one class."""
    num = sum(extension(entry.name) in _TABLES for _, entry in entries_below(root, ""))
    what = f"{_noun('table', num)}, which may hold labels, not read: put each class's images into "
    return [Note(num, f"{what}a folder of its own")] if num else []


def _folder(place: str, aside: Sequence[tuple[str, str]]) -> str:
    """The folder that an unused image is counted for: one left aside, or the first of its path."""
    for folder, _ in aside:
        if place.startswith(f"{folder}/"):
            return folder
    return place.split("/", 1)[0] if "/" in place else ""


def _images(images: Counter[str], why: dict[str, str]) -> Iterator[Note]:
    plain = {folder: num for folder, num in images.items() if folder and folder not in why}
    for folder, reason in why.items():
        if num := images[folder]:
            yield Note(num, f"{_noun('image', num)} in {escaped(folder)}/, not used: {reason}")
    if plain:
        num = sum(plain.values())
        places = _names([f"{name}/" for name in plain])
        yield Note(num, f"{_noun('image', num)} in {places}, not taken")
    if num := images[""]:
        yield Note(num, f"{_noun('image', num)} beside the class folders, not taken")


def listed(found: Mapping[str, int], what: str) -> list[Note]:
    """A note on things counted by name, the most frequent first; none where there are none."""
    if not found:
        return []
    names = [name for name, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))]
    return [Note(sum(found.values()), f"{what} ({_names(names)})")]


def _noun(noun: str, num: int) -> str:
    return noun if num == 1 else f"{noun}s"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return escaped(", ".join(names[:SHOWN])) + more
