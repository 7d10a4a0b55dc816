"""Walking folders of images: sorted, hidden and system files left out, links followed."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from srdd_platform.data.formats import is_read

SYSTEM = frozenset(  # what systems and tools put beside a person's files, in lower case
    {
        "$recycle.bin", "#recycle", "@eadir", "__macosx", "__pycache__", "desktop.ini",
        "ehthumbs.db", "icon\r", "lost+found", "lost.dir", "system volume information", "thumbs.db",
    }
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a system's own."""
    return name.startswith(".") or name.lower() in SYSTEM


def extension(name: str) -> str:
    """The end of a file's name in lower case, with its dot; "" for none."""
    return os.path.splitext(name)[1].lower()


def subfolders(path: Path) -> list[str]:
    """Names of the visible folders in a folder, sorted."""
    with os.scandir(path) as found:
        return sorted(e.name for e in found if not is_hidden(e.name) and e.is_dir())


def images_below(path: Path, origin: str) -> Iterator[tuple[str, int]]:
    """Yield (origin, size in bytes) of the images in and below a folder, in sorted order.

    The size of a broken link is -1: reading it will name and skip it.

    Args:
        path: the folder.
        origin: its place relative to the source, "" for the source itself.
    """
    for place, entry in entries_below(path, origin):
        if is_image(entry):
            try:
                yield place, entry.stat().st_size
            except OSError:
                yield place, -1


def has_images(path: Path, above: tuple[str, ...] = ()) -> bool:
    """Whether there is an image in or below a folder."""
    real = os.path.realpath(path)
    if real in above:
        return False
    folders = []
    with os.scandir(path) as found:
        for entry in found:
            if entry.is_dir():
                folders += [] if is_hidden(entry.name) else [entry.name]
            elif is_image(entry):
                return True
    return any(has_images(path / name, (*above, real)) for name in folders)


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is taken for an image file: by its extension, and a link by its name."""
    if is_hidden(entry.name) or not is_read(extension(entry.name)):
        return False
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def entries_below(
    path: Path, origin: str, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (origin, entry) of all in and below a folder, in sorted order.

    Visible folders are walked and not yielded; hidden ones are yielded and not walked.

    Args:
        path: the folder.
        origin: its place relative to the source.
        above: real paths of the folders above it: a link to one of them is not followed.
    """
    real = os.path.realpath(path)
    if real in above:
        return
    with os.scandir(path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        place = f"{origin}/{entry.name}" if origin else entry.name
        if entry.is_dir() and not is_hidden(entry.name):
            yield from entries_below(path / entry.name, place, (*above, real))
        else:
            yield place, entry
