"""Images -> WebDataset shards and their manifest; this module owns the format ``srdd-shards-1``.

A shard directory holds ``train-000000.tar ...``, ``val-000000.tar ...`` and ``manifest.json``. A
sample is three members, ``KEY.cls`` (class index), ``KEY.json`` (class name and origin) and
``KEY.png`` (uint8 RGB, R x R; larger with ``keep``), under a key such as ``train-00000042`` that
counts up through the split. Beside each shard lies its index (:mod:`srdd_platform.data.index`).
The same input gives the same bytes: no time, no absolute path.
"""

import io
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import webdataset as wds
from PIL import Image

from srdd.errors import UserError
from srdd_platform import files
from srdd_platform.data.index import load_index
from srdd_platform.data.manifest import MANIFEST, Manifest, Settings, Shard, Skipped, Split
from srdd_platform.data.pixels import MAX_KEEP, BadImageError, stored_side
from srdd_platform.data.recipes import Recipe, open_recipe
from srdd_platform.data.sources import SPLITS, Item, Source, open_source

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
    try:
        if isinstance(source, Recipe):
            listed = open_recipe(source, path, seed=seed, allow_counts=allow_counts)
        else:
            listed = open_source(source, path, seed=seed, val_fraction=val_fraction)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
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
        with files.atomic_path(target) as temporary:
            temporary.mkdir()
            manifest = _write(temporary, listed, settings, limit, workers, progress)
            if finished := _finished(out, settings):  # another run was faster
                raise _OvertakenError
            if target.is_dir():
                target.rmdir()  # empty as just seen; should that have changed, this refuses
    except _OvertakenError:
        assert finished is not None
        return finished
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; nothing was kept, free "
                        "the space or choose another directory") from error  # fmt: skip
    return manifest


class _OvertakenError(Exception):
    """Another run finished the same directory first."""


def _write(
    directory: Path,
    source: Source,
    settings: Settings,
    limit: int,
    workers: int | None,
    progress: Progress | None,
) -> Manifest:
    skipped: list[Skipped] = []
    counts = {split: Counter[int]() for split in SPLITS}

    def good() -> Generator[tuple[Item, bytes], None, None]:
        items = source.items(seed=settings.seed, resolution=settings.resolution, keep=settings.keep)
        for done, (item, png) in enumerate(_encoded(items, workers), start=1):
            if isinstance(png, bytes):
                counts[item.split][item.label] += 1
                yield item, png
            else:
                skipped.append(Skipped(origin=item.origin, reason=str(png)))
                if len(skipped) > limit:
                    raise UserError(_too_many(skipped, limit))
            if progress is not None:
                progress(done, len(source))

    shards: dict[str, tuple[Shard, ...]] = dict.fromkeys(SPLITS, ())
    with closing(good()) as samples:
        for split, of_split in groupby(samples, key=lambda sample: sample[0].split):
            shards[split] = tuple(_write_split(directory, split, of_split, source, settings))
    for label, name in enumerate(source.classes):
        if not counts["train"][label]:
            raise UserError(f"class {name!r} has no readable training image ({len(skipped)} "
                            f"skipped in all): repair or remove it{_first(skipped)}")  # fmt: skip
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
    )
    files.write_json(directory / MANIFEST, manifest.to_json())
    return manifest


def _write_split(
    directory: Path,
    split: str,
    samples: Iterator[tuple[Item, bytes]],
    source: Source,
    settings: Settings,
) -> Iterator[Shard]:
    size = settings.shard_size_images
    for number, shard in groupby(enumerate(samples), key=lambda sample: sample[0] // size):
        path = directory / f"{split}-{number:06d}.tar"
        num = 0
        with path.open("wb") as file:
            with wds.TarWriter(file, encoder=False, mtime=0) as tar:
                for i, (item, png) in shard:
                    about = {"class_name": source.classes[item.label], "origin": item.origin}
                    tar.write(
                        {
                            "__key__": f"{split}-{i:08d}",
                            "cls": str(item.label).encode(),
                            "json": json.dumps(about, sort_keys=True).encode(),
                            "png": png,
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


def _encoded(
    items: Iterable[Item], workers: int | None
) -> Iterator[tuple[Item, bytes | BadImageError]]:
    """Read and encode items in threads, in their order, a few ahead of the writer."""
    workers = workers or min(8, os.cpu_count() or 1)
    ahead: deque[Future[tuple[Item, bytes | BadImageError]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(_encode, item))
                if len(ahead) >= 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _encode(item: Item) -> tuple[Item, bytes | BadImageError]:
    try:
        pixels = item.load()
    except BadImageError as error:
        return item, error
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return item, buffer.getvalue()


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
    if not 1 <= resolution <= 8192:
        raise UserError(f"resolution is a side in pixels, 1 to 8192, got {resolution}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed counts from 0, got {seed}")
    if not 1.0 <= keep <= MAX_KEEP:
        raise UserError(f"keep lies between 1 and {MAX_KEEP}, got {keep}")
    if not 0.0 < val_fraction < 1.0:
        raise UserError(f"val_fraction lies between 0 and 1, got {val_fraction}")
    if shard_size is not None and shard_size < 1:
        raise UserError(f"shard_size_images counts from 1, got {shard_size}")
    if max_bad is not None and max_bad < 0:
        raise UserError(f"max_bad counts from 0, got {max_bad}")


def _too_many(skipped: list[Skipped], limit: int) -> str:
    return (
        f"more than {limit} images cannot be read: repair or remove them, or allow more with "
        f"max_bad{_first(skipped)}"
    )


def _first(skipped: list[Skipped]) -> str:
    shown = "; ".join(f"{one.origin}: {one.reason}" for one in skipped[:3])
    return f" (first: {shown})" if shown else ""
