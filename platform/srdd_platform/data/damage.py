"""What of a data set cannot be used: found before training, named, counted, and left out.

A shard is compared with the SHA-256 of its manifest once. Where that differs every sample is
decoded, and those that cannot be, or whose PNG is not what its checksums say, are lost; a shard
that is missing or of another size is lost whole. ``.inspected.json`` beside the shards keeps what
was found, by size and time of each file, so that the next look costs nothing.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd_platform.core import files
from srdd_platform.data.index import load_index, sample_key
from srdd_platform.data.manifest import Manifest, Shard
from srdd_platform.data.modes import BadImageError
from srdd_platform.data.pixels import read_png

INSPECTED = ".inspected.json"
SHOWN = 5  # names in a message
MUCH = 5e9  # bytes whose reading takes so long that it is said

logger = logging.getLogger(__name__)

Skipped = Mapping[str, int]  # of a split: a sample's key or a shard's name, and its samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """A sample or a whole shard that cannot be used."""

    name: str  # a sample's key, or a shard's name
    num: int  # samples
    why: str


def usable(
    inspected: Mapping[str, Sequence[Damage]], manifest: Manifest, name: str, max_bad: int | None
) -> dict[str, dict[str, int]]:
    """What is left out of each split; empty where all can be used.

    Args:
        inspected: what was found, by split.
        manifest: of the data.
        name: of the data, for messages.
        max_bad: samples of a split that may be left out; by default one in a thousand, at least
            one: a lost record must not stop a long training, and a loss that large would have
            been noticed in the numbers that a data set is published with.

    Raises:
        UserError: more than that cannot be used, or nothing is left; it names and counts them.
    """
    found: dict[str, dict[str, int]] = {}
    for split, damages in inspected.items():
        num = manifest.splits[split].num
        limit = max(1, num // 1000) if max_bad is None else max_bad
        lost = sum(damage.num for damage in damages)
        if lost > limit:
            raise UserError(f"{name} has {lost} unusable of {num} {split} samples, more than the "
                            f"{limit} allowed: {listed(damages)}; copy or prepare the data again, "
                            "or allow more by --max-bad")  # fmt: skip
        if lost >= num:
            raise UserError(f"split {split!r} of {name} has no usable images")
        if damages:
            found[split] = {damage.name: damage.num for damage in damages}
    return found


def listed(damages: Sequence[Damage]) -> str:
    """Names and reasons, the first few of them."""
    more = f" and {len(damages) - SHOWN} more" if len(damages) > SHOWN else ""
    return ", ".join(f"{one.name} ({one.why})" for one in damages[:SHOWN]) + more


def left_out(skipped: Mapping[str, Skipped]) -> str:
    """What is left out, counted and named; "" for nothing."""
    return "; ".join(
        f"{sum(of.values())} {split} images ({', '.join(list(of)[:SHOWN])}"
        f"{', ...' if len(of) > SHOWN else ''})"
        for split, of in skipped.items()
    )


def stamp(size: int, mtime_ns: int) -> str:
    """Names the state of a file, without reading it."""
    return f"{size} {mtime_ns}"


def inspect_shard(path: Path, shard: Shard, manifest: Manifest, split: str) -> list[Damage]:
    """What of one shard cannot be used, by its bytes; its index is built where it is whole.

    Raises:
        OSError: it cannot be read.
    """
    first = manifest.first(split, shard.name)
    whole = path.stat().st_size == shard.bytes and files.sha256_file(path) == shard.sha256
    index = load_index(path, shard, split, first, manifest.classes, keep=whole)
    if whole:
        return []
    damages = []
    with path.open("rb") as file:
        for row in range(shard.num):
            png = os.pread(file.fileno(), int(index.sizes[row]), int(index.offsets[row]))
            try:
                if not png:
                    raise BadImageError("a header of it is damaged")
                read_png(png, manifest.stored_side, manifest.resolution, verify=True)
            except BadImageError as error:
                name = sample_key(split, first + row)
                damages.append(Damage(name=name, num=1, why=str(error)))
    if len(damages) == shard.num:
        return [Damage(name=shard.name, num=shard.num, why="no sample of it can be read")]
    return damages


class Inspections:
    """What was found in a directory's shards, kept there for the next reader."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / INSPECTED
        try:
            stored = json.loads(self._path.read_text())
            self._found: dict[str, Any] = stored if isinstance(stored, dict) else {}
        except (OSError, ValueError):
            self._found = {}

    def split(
        self,
        manifest: Manifest,
        split: str,
        stamps: Mapping[str, str],
        look: Callable[[Shard], list[Damage]],
    ) -> list[Damage]:
        """What of a split cannot be used.

        Args:
            manifest: of the data.
            split: "train" or "val".
            stamps: of the files that are there, by shard.
            look: inspects one whose bytes have not been looked at; called from threads.
        """
        shards = manifest.splits[split].shards
        found = {shard.name: self._known(shard, stamps.get(shard.name)) for shard in shards}
        todo = [shard for shard in shards if found[shard.name] is None]
        if todo:
            if (size := sum(shard.bytes for shard in todo)) > MUCH:
                logger.warning("looking at %.0f GB of shards once", size / 1e9)
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for shard, damages in zip(todo, pool.map(look, todo), strict=True):
                    found[shard.name] = damages
                    self._found[shard.name] = {
                        "stamp": stamps[shard.name],
                        "sha256": shard.sha256,
                        "damaged": [asdict(damage) for damage in damages],
                    }
            with suppress(OSError):  # a read-only or full disk: the next reader looks again
                files.write_json(self._path, self._found)
        return [damage for shard in shards for damage in found[shard.name] or ()]

    def _known(self, shard: Shard, mark: str | None) -> list[Damage] | None:
        """What of a shard cannot be used, as far as that is known without its bytes."""
        if mark is None:
            return [Damage(name=shard.name, num=shard.num, why="missing")]
        if not mark.startswith(f"{shard.bytes} "):
            why = f"{mark.split()[0]} bytes, not the {shard.bytes} of the manifest"
            return [Damage(name=shard.name, num=shard.num, why=why)]
        try:
            entry = self._found[shard.name]
            if (entry["stamp"], entry["sha256"]) != (mark, shard.sha256):
                return None
            return [Damage(**damage) for damage in entry["damaged"]]
        except (KeyError, TypeError):
            return None
