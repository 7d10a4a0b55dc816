"""Walking folders of images: sorted, hidden files left out, links followed without circles."""

import os
from collections.abc import Iterator
from pathlib import Path

EXTENSIONS = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)


def subfolders(path: Path) -> list[str]:
    """Names of the visible folders in a folder, sorted."""
    with os.scandir(path) as found:
        return sorted(e.name for e in found if not e.name.startswith(".") and e.is_dir())


def images_below(path: Path, origin: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    """Yield (origin, size in bytes) of the images in and below a folder, in sorted order.

    Args:
        path: the folder.
        origin: its place relative to the source, "" for the source itself.
        above: real paths of the folders above it.
    """
    real = os.path.realpath(path)
    if real in above:  # a link to a folder above it
        return
    with os.scandir(path) as found:
        visible = [entry for entry in found if not entry.name.startswith(".")]
    for entry in sorted(visible, key=lambda entry: entry.name):
        place = f"{origin}/{entry.name}" if origin else entry.name
        if entry.is_dir():
            yield from images_below(path / entry.name, place, (*above, real))
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            try:
                yield place, entry.stat().st_size
            except OSError:  # a broken link: reading it will name and skip it
                yield place, -1
