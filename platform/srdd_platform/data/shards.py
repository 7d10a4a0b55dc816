"""Images -> WebDataset shards and their manifest; this module owns the format ``srdd-shards-1``.

A shard directory holds ``train-000000.tar ...``, ``val-000000.tar ...`` and ``manifest.json``. A
sample is three members, ``KEY.cls`` (class index), ``KEY.json`` (class name and origin) and
``KEY.png`` (uint8 RGB, R x R; larger with ``keep``), under a key such as ``train-00000042`` that
counts up through the split. Beside each shard lies its index (:mod:`srdd_platform.data.index`).
The same input gives the same bytes: no time, no absolute path.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from srdd.errors import UserError
from srdd_platform.core import files
from srdd_platform.core.file_errors import explain, is_full
from srdd_platform.data.manifest import MANIFEST, Manifest, Settings
from srdd_platform.data.pixels import MAX_KEEP, own_files, stored_side
from srdd_platform.data.recipes import Recipe, open_recipe
from srdd_platform.data.shard_writer import Progress, write_shards
from srdd_platform.data.sources import Source, open_source

MIN_MAX_BAD = 10


def prepare(
    *,
    source: str | Recipe,
    path: Path | None = None,
    resolution: int,
    out: Path,
    seed: int = 0,
    keep: float = 1.0,
    allow_counts: bool = False,
    val_fraction: float = 0.2,
    shard_size_images: int | None = None,
    max_bad: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a source as shards. The whole directory appears at once, or nothing does.

    Given again with the same settings it returns the finished manifest and does no work.

    Args:
        source: "digits", "folder", or a recipe.
        path: the folder of class folders, or the recipe's.
        resolution: side R of the images, in pixels.
        out: the directory to make.
        seed: of the split and of the order.
        keep: above 1, images are stored whole with a shorter side of keep * R, for random crops.
        allow_counts: take a recipe's folder that lacks images.
        val_fraction: share held out where the source has no split of its own.
        shard_size_images: images a shard; by default about 100 MB, at most 10,000 images.
        max_bad: unreadable images that are skipped before giving up; by default 1 % of all, at
            least 10. The skipped are named in the manifest.
        workers: threads that read and encode; the shards do not depend on it.
        progress: called with (images done, images in all).

    Raises:
        UserError: wrong settings, an unusable source, too many unreadable images, an ``out`` that
            holds something else, or a disk that is full or read-only.
    """
    _check_settings(resolution, seed, keep, val_fraction, shard_size_images, max_bad)
    target = out.resolve()  # "." has no name to put a temporary directory beside, a link no content
    if path is not None and target.is_relative_to(path.resolve()):
        raise UserError(f"{out} lies inside the source {path}: choose a directory outside it")
    with _reading():
        if isinstance(source, Recipe):
            listed = open_recipe(source, path, seed=seed, allow_counts=allow_counts)
        else:
            listed = open_source(source, path, seed=seed, val_fraction=val_fraction)
    if not listed.entries["val"]:
        raise UserError(f"{path} has one image a class, so that none can be held out: add images, "
                        "or put some into val/ and the others into train/, by class")  # fmt: skip
    settings = Settings(
        source=listed.kind, resolution=resolution, seed=seed, val_fraction=val_fraction,
        shard_size_images=shard_size_images or _default_size(stored_side(resolution, keep)),
        listing=listed.listing, keep=keep,
    )  # fmt: skip
    limit = max(MIN_MAX_BAD, len(listed) // 100) if max_bad is None else max_bad
    return _write_directory(out, target, listed, settings, limit, workers, progress)


def _default_size(side: int) -> int:
    """Images a shard, so that one has about 100 MB."""
    return max(256, min(10_000, 150_000_000 // (2 * side**2)))


def _write_directory(
    out: Path,
    target: Path,
    source: Source,
    settings: Settings,
    limit: int,
    workers: int | None,
    progress: Progress | None,
) -> Manifest:
    """The finished directory of these settings; it is written where there is none.

    Args: as :func:`write_shards`; ``out`` is what the user gave, ``target`` the same without links.
    """
    try:
        if finished := _finished(out, settings):
            return finished
        with _reading():
            notes = source.notes()
        with files.atomic_path(target) as temporary, own_files():
            temporary.mkdir()
            manifest = write_shards(
                temporary, source, notes, settings, limit=limit, workers=workers, progress=progress
            )
            if finished := _finished(out, settings):  # another run was faster
                raise _OvertakenError
            if target.is_dir():
                target.rmdir()  # empty as just seen; should that have changed, this refuses
    except _OvertakenError:
        assert finished is not None
        return finished
    except OSError as error:
        free = "free the space or " if is_full(error) else ""
        raise UserError(f"cannot write {out}: {error.strerror or error}; nothing was kept, "
                        f"{free}choose another directory") from error  # fmt: skip
    return manifest


class _OvertakenError(Exception):
    """Another run finished the same directory first."""


@contextmanager
def _reading() -> Iterator[None]:
    """Say what of a source cannot be read."""
    try:
        yield
    except OSError as error:
        why = explain(error) or f"{error.filename}: {error.strerror}: check the disk"
        raise UserError(f"cannot read {why}") from error


def _finished(out: Path, settings: Settings) -> Manifest | None:
    """The manifest of a directory made from the same settings; None where there is nothing yet.

    Raises:
        UserError: ``out`` holds anything else, or shards that are incomplete.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose a directory that does not exist")
    if not any(out.iterdir()):
        if os.path.ismount(out):  # it cannot be replaced: better said now than at the end
            raise UserError(f"{out} is a mount point: choose a directory inside it")
        return None
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out} is not empty and holds no shards: choose another directory")
    manifest = Manifest.load(out)
    old, new = asdict(manifest.settings), asdict(settings)
    if differences := [
        "other source files" if name == "listing" else f"{name} {old[name]} (asked for {new[name]})"
        for name in new
        if old[name] != new[name]
    ]:
        raise UserError(f"{out} was prepared with {', '.join(differences)}: choose another "
                        "directory, or remove it first")  # fmt: skip
    for split in manifest.splits.values():
        for shard in split.shards:
            path = out / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise UserError(f"{path} is missing or truncated: remove {out} and prepare it "
                                "again")  # fmt: skip
    return manifest


def _check_settings(
    resolution: int,
    seed: int,
    keep: float,
    val_fraction: float,
    shard_size: int | None,
    max_bad: int | None,
) -> None:
    for good, name, rule, value in (
        (1 <= resolution <= 8192, "resolution", "is a side in pixels, 1 to 8192", resolution),
        (0 <= seed < 2**63, "seed", "counts from 0", seed),
        (1.0 <= keep <= MAX_KEEP, "keep", f"lies between 1 and {MAX_KEEP}", keep),
        (0.0 < val_fraction < 1.0, "val_fraction", "lies between 0 and 1", val_fraction),
        (shard_size is None or shard_size >= 1, "shard_size_images", "counts from 1", shard_size),
        (max_bad is None or max_bad >= 0, "max_bad", "counts from 0", max_bad),
    ):
        if not good:
            raise UserError(f"{name} {rule}, got {value}", field=name)
