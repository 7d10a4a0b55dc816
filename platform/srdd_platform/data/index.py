"""Where each sample lies in its shard: read once from the tar headers, kept beside the shard.

The index is also the inspection of the data: a shard that is missing, truncated or damaged is
found here and named, before training. Only ``verify=True`` reads the images themselves.
"""

import io
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from srdd.errors import UserError
from srdd_platform import files
from srdd_platform.data.manifest import Manifest, Shard

MEMBERS = frozenset({"cls", "json", "png"})
BLOCK = 512  # bytes of a tar header, and of the zeros that end an archive


class BadShardError(Exception):
    """A shard that cannot be used; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShardIndex:
    """The samples of one shard, in the order they were written.

    Shapes:
        keys: str [n]. labels: int64 [n].
        offsets, sizes: int64 [n], the bytes of the PNG within the shard.
    """

    keys: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)


def load_split(
    directory: Path, manifest: Manifest, split: str, *, verify: bool = False
) -> list[ShardIndex]:
    """The indexes of a split's shards, in order; built where there are none yet.

    Args:
        directory: the shard directory.
        manifest: its manifest.
        split: "train" or "val".
        verify: read every byte and compare it with the manifest's SHA-256 too.

    Raises:
        UserError: there is no such split, or shards are unusable; it names them.
    """
    if split not in manifest.splits:
        raise UserError(f"{directory} has no split {split!r}, only {', '.join(manifest.splits)}")
    indexes: list[ShardIndex] = []
    bad: list[str] = []
    for shard in manifest.splits[split].shards:
        try:
            index = load_index(directory / shard.name, shard, verify=verify)
            if index.labels.size and not 0 <= index.labels.min() <= index.labels.max() < len(
                manifest.classes
            ):
                raise BadShardError("labels beyond the classes of the manifest")
            indexes.append(index)
        except BadShardError as error:
            bad.append(f"{shard.name} ({error})")
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UserError(f"{directory} has damaged shards: {', '.join(bad[:5])}{more}; copy them "
                        "again, or prepare the data again")  # fmt: skip
    return indexes


def load_index(path: Path, shard: Shard, *, verify: bool = False) -> ShardIndex:
    """The index of one shard: from its cache if the shard has not changed since, else built.

    The cache is a convenience: where it cannot be written the index stays in memory.

    Raises:
        BadShardError: the shard is missing, or not what the manifest says.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise BadShardError("missing" if not path.exists() else str(error.strerror)) from None
    if stat.st_size != shard.bytes:
        raise BadShardError(f"{stat.st_size} bytes, not the {shard.bytes} of the manifest")
    if verify and files.sha256_file(path) != shard.sha256:
        raise BadShardError("its SHA-256 is not the manifest's")
    cache = path.with_name(path.name + ".index.npz")
    stamp = f"{stat.st_size} {stat.st_mtime_ns} {shard.sha256}"
    index = _read_cache(cache, stamp)
    if index is None or len(index) != shard.num:
        index = build_index(path)
        if len(index) != shard.num:
            raise BadShardError(f"{len(index)} samples, not the {shard.num} of the manifest")
        _write_cache(cache, stamp, index)
    return index


def build_index(path: Path) -> ShardIndex:
    """Read the headers of a shard, and its labels.

    A tar reader takes a damaged header for the end of the archive, so the end is looked at too.

    Raises:
        BadShardError: truncated, damaged, or samples that lack a member.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.offset_data + member.size > size:
                        raise BadShardError(f"truncated at {member.name}")
                    key, _, extension = member.name.partition(".")
                    if not member.isreg() or extension not in MEMBERS:
                        raise BadShardError(f"has a foreign member {member.name}")
                    if extension in samples.setdefault(key, {}):
                        raise BadShardError(f"has {member.name} twice")
                    samples[key][extension] = (member.offset_data, member.size)
                end = tar.offset
            file.seek(end)
            tail = file.read(BLOCK)
            if len(tail) < BLOCK or tail.strip(b"\0"):
                raise BadShardError(f"damaged or truncated at byte {end} of {size}")
            labels = []
            for key, members in samples.items():
                if missing := sorted(MEMBERS - members.keys()):
                    raise BadShardError(f"{key} has no {missing[0]}")
                offset, length = members["cls"]
                file.seek(offset)
                labels.append(_label(key, file.read(length)))
    except tarfile.TarError as error:
        raise BadShardError(f"damaged: {error}") from None
    except OSError as error:
        raise BadShardError(str(error.strerror or error)) from None
    places = np.array([members["png"] for members in samples.values()], dtype=np.int64)
    places = places.reshape(-1, 2)
    return ShardIndex(
        keys=np.array(list(samples), dtype=np.str_),
        labels=np.array(labels, dtype=np.int64),
        offsets=places[:, 0].copy(),
        sizes=places[:, 1].copy(),
    )


def _label(key: str, text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadShardError(f"the class of {key} is not a number") from None


def _read_cache(path: Path, stamp: str) -> ShardIndex | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["stamp"]) != stamp:
                return None
            return ShardIndex(
                keys=stored["keys"],
                labels=stored["labels"],
                offsets=stored["offsets"],
                sizes=stored["sizes"],
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # absent, half a copy, or of another version: it is built anew


def _write_cache(path: Path, stamp: str, index: ShardIndex) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        stamp=np.array(stamp),
        keys=index.keys,
        labels=index.labels,
        offsets=index.offsets,
        sizes=index.sizes,
    )
    try:
        files.write_bytes(path, buffer.getvalue())
    except OSError:  # a read-only or full disk
        return
