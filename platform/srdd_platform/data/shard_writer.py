"""The shards of a listed source, and their manifest: from images read to files on disk."""

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import webdataset as wds

from srdd.errors import UserError
from srdd_platform.core import files
from srdd_platform.data.encoding import Encoded, encoded
from srdd_platform.data.index import load_index
from srdd_platform.data.leftovers import Note
from srdd_platform.data.manifest import MANIFEST, Manifest, Settings, Shard, Skipped, Split
from srdd_platform.data.sources import SPLITS, Source

Progress = Callable[[int, int], None]  # (images done, images in all)


def write_shards(
    directory: Path,
    source: Source,
    notes: Sequence[Note],
    settings: Settings,
    *,
    limit: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the shards of a source, their indices and the manifest.

    Args:
        directory: an empty one.
        source: what is written.
        notes: what of the source is not used.
        settings: of the shards.
        limit: unreadable images that are skipped.
        workers: threads that read and encode; the shards do not depend on it.
        progress: called with (images done, images in all).

    Raises:
        UserError: more images cannot be read, or none of a class or of a split can.
        OSError: the disk is full or read-only.
    """
    images = _Images(source, limit, progress)
    shards: dict[str, tuple[Shard, ...]] = dict.fromkeys(SPLITS, ())
    with closing(images.readable(settings, workers)) as samples:
        for split, of_split in groupby(samples, key=lambda image: image.item.split):
            shards[split] = tuple(_write_split(directory, split, of_split, source, settings))
    images.check()
    manifest = images.manifest(settings, shards, notes)
    files.write_json(directory / MANIFEST, manifest.to_json())
    return manifest


@dataclass
class _Images:
    """The images of a source: those that can be read, counted, and those that cannot, named."""

    source: Source
    limit: int
    progress: Progress | None
    skipped: list[Skipped] = field(default_factory=list)
    counts: dict[str, Counter[int]] = field(
        default_factory=lambda: {split: Counter() for split in SPLITS}
    )
    firsts: int = 0  # files with several images, of which the first is taken

    def readable(self, settings: Settings, workers: int | None) -> Generator[Encoded, None, None]:
        """The images that can be read.

        Raises:
            UserError: too many cannot.
        """
        items = self.source.items(
            seed=settings.seed, resolution=settings.resolution, keep=settings.keep
        )
        for done, image in enumerate(encoded(items, workers), start=1):
            if not image.error:
                self.counts[image.item.split][image.item.label] += 1
                self.firsts += image.first_of_many
                yield image
            else:
                self.skipped.append(Skipped(origin=image.item.origin, reason=image.error))
                if len(self.skipped) > self.limit:
                    raise UserError(f"more than {self.limit} images cannot be read: repair or "
                                    "remove them, or allow more by "
                                    f"--max-bad{self._first()}")  # fmt: skip
            if self.progress is not None:
                self.progress(done, len(self.source))

    def check(self) -> None:
        """Refuse a class without training images, or a split without any.

        Raises:
            UserError: the class or the split is named, and what cannot be read.
        """
        num = len(self.skipped)
        for label, name in enumerate(self.source.classes):
            if not self.counts["train"][label]:
                raise UserError(f"class {name!r} has no readable training image ({num} skipped in "
                                f"all): repair or remove it{self._first()}")  # fmt: skip
        if not self.counts["val"]:
            raise UserError(f"no held-out image can be read ({num} skipped in all): repair "
                            f"them{self._first()}")  # fmt: skip

    def manifest(
        self, settings: Settings, shards: dict[str, tuple[Shard, ...]], notes: Sequence[Note]
    ) -> Manifest:
        """The manifest of the shards that hold them."""
        if self.firsts:
            several = Note(self.firsts, "animated or of many pages: the first image is taken")
            notes = [*notes, several]
        splits = {
            split: Split(
                num=counts.total(),
                per_class={name: counts[i] for i, name in enumerate(self.source.classes)},
                shards=shards[split],
            )
            for split, counts in self.counts.items()
        }
        return Manifest(
            settings=settings, classes=self.source.classes, splits=splits,
            skipped=tuple(self.skipped), rule=self.source.rule,
            unconditional=self.source.unconditional, notes=tuple(notes),
        )  # fmt: skip

    def _first(self) -> str:
        shown = "; ".join(f"{one.origin}: {one.reason}" for one in self.skipped[:3])
        return f" (first: {shown})" if shown else ""


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
