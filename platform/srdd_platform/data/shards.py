"""Images -> WebDataset shards and their manifest; this module owns the format ``srdd-shards-1``.

A shard directory holds ``train-000000.tar ...``, ``val-000000.tar ...`` and ``manifest.json``. A
sample is three members, ``KEY.cls`` (class index), ``KEY.json`` (class name and origin) and
``KEY.png`` (uint8 RGB, R x R; larger with ``keep``), under a key such as ``train-00000042`` that
counts up through the split. Beside each shard lies its index (:mod:`srdd_platform.data.index`).
The same input gives the same bytes: no time, no absolute path.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import webdataset as wds

from srdd.errors import UserError
from srdd_platform.core import files
from srdd_platform.core.file_errors import explain, is_full
from srdd_platform.data.encoding import Encoded, encoded
from srdd_platform.data.index import load_index
from srdd_platform.data.leftovers import Note
from srdd_platform.data.manifest import MANIFEST, Manifest, Settings, Shard, Skipped, Split
from srdd_platform.data.pixels import MAX_KEEP, own_files, stored_side
from srdd_platform.data.recipes import Recipe, open_recipe
from srdd_platform.data.sources import SPLITS, Source, open_source

MIN_MAX_BAD = 10

Progress = Callable[[int, int], None]  # (images done, images in all)


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
    if shard_size_images is None:
        side = stored_side(resolution, keep)
        shard_size_images = max(256, min(10_000, 150_000_000 // (2 * side**2)))
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
        source=listed.kind,
        resolution=resolution,
        seed=seed,
        val_fraction=val_fraction,
        shard_size_images=shard_size_images,
        listing=listed.listing,
        keep=keep,
    )
    limit = max(MIN_MAX_BAD, len(listed) // 100) if max_bad is None else max_bad
    try:
        if finished := _finished(out, settings):
            return finished
        with _reading():
            notes = listed.notes()
        with files.atomic_path(target) as temporary, own_files():
            temporary.mkdir()
            manifest = _write(temporary, listed, notes, settings, limit, workers, progress)
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


def _write(
    directory: Path,
    source: Source,
    notes: Sequence[Note],
    settings: Settings,
    limit: int,
    workers: int | None,
    progress: Progress | None,
) -> Manifest:
    skipped: list[Skipped] = []
    counts = {split: Counter[int]() for split in SPLITS}
    firsts = 0

    def good() -> Generator[Encoded, None, None]:
        nonlocal firsts
        items = source.items(seed=settings.seed, resolution=settings.resolution, keep=settings.keep)
        for done, image in enumerate(encoded(items, workers), start=1):
            if not image.error:
                counts[image.item.split][image.item.label] += 1
                firsts += image.first_of_many
                yield image
            else:
                skipped.append(Skipped(origin=image.item.origin, reason=image.error))
                if len(skipped) > limit:
                    raise UserError(_too_many(skipped, limit))
            if progress is not None:
                progress(done, len(source))

    shards: dict[str, tuple[Shard, ...]] = dict.fromkeys(SPLITS, ())
    with closing(good()) as samples:
        for split, of_split in groupby(samples, key=lambda image: image.item.split):
            shards[split] = tuple(_write_split(directory, split, of_split, source, settings))
    for label, name in enumerate(source.classes):
        if not counts["train"][label]:
            raise UserError(f"class {name!r} has no readable training image ({len(skipped)} "
                            f"skipped in all): repair or remove it{_first(skipped)}")  # fmt: skip
    if not counts["val"]:
        raise UserError(f"no held-out image can be read ({len(skipped)} skipped in all): repair "
                        f"them{_first(skipped)}")  # fmt: skip
    if firsts:
        notes = [*notes, Note(firsts, "animated or of many pages: the first image is taken")]
    manifest = Manifest(
        settings=settings,
        classes=source.classes,
        splits={
            split: Split(
                num=counts[split].total(),
                per_class={name: counts[split][i] for i, name in enumerate(source.classes)},
                shards=shards[split],
            )
            for split in SPLITS
        },
        skipped=tuple(skipped),
        rule=source.rule,
        unconditional=source.unconditional,
        notes=tuple(notes),
    )
    files.write_json(directory / MANIFEST, manifest.to_json())
    return manifest


def _write_split(
    directory: Path,
    split: str,
    samples: Iterator[Encoded],
    source: Source,
    settings: Settings,
) -> Iterator[Shard]:
    size = settings.shard_size_images
    for number, shard in groupby(enumerate(samples), key=lambda sample: sample[0] // size):
        path = directory / f"{split}-{number:06d}.tar"
        num = 0
        with path.open("wb") as file:
            with wds.TarWriter(file, encoder=False, mtime=0) as tar:
                for i, image in shard:
                    item = image.item
                    about = {"class_name": source.classes[item.label], "origin": item.origin}
                    tar.write(
                        {
                            "__key__": f"{split}-{i:08d}",
                            "cls": str(item.label).encode(),
                            "json": json.dumps(about, sort_keys=True).encode(),
                            "png": image.png,
                        }
                    )
                    num += 1
            file.flush()
            os.fsync(file.fileno())
        written = Shard(
            name=path.name,
            num=num,
            bytes=path.stat().st_size,
            sha256=files.sha256_file(path),
        )
        load_index(path, written, split, number * size, source.classes)  # writes it
        yield written


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


def _too_many(skipped: list[Skipped], limit: int) -> str:
    return (
        f"more than {limit} images cannot be read: repair or remove them, or allow more by "
        f"--max-bad{_first(skipped)}"
    )


def _first(skipped: list[Skipped]) -> str:
    shown = "; ".join(f"{one.origin}: {one.reason}" for one in skipped[:3])
    return f" (first: {shown})" if shown else ""
