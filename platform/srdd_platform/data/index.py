"""Where each sample lies in its shard: read once from the tar headers, kept beside the shard.

``train-000000.tar.index.npz`` holds ``stamp`` (the shard's SHA-256), ``labels``, ``offsets`` and
``sizes``. ``srdd data prepare`` writes it with the shard, so that it travels to a bucket with it;
elsewhere it is built where it is missing. It is a convenience: where it cannot be written it stays
in memory. Sample i of a split has the key ``train-0000000i``, whatever its shard.
"""

import io
import json
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from srdd_platform.core import files
from srdd_platform.data.manifest import Shard

MEMBERS = frozenset({"cls", "json", "png"})
BLOCK = 512  # bytes of a tar header, and of the zeros that end an archive
INDEX = ".index.npz"

Members = dict[str, dict[str, tuple[int, int]]]  # by key, by extension: offset and size


class BadShardError(Exception):
    """A shard that cannot be used; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShardIndex:
    """The samples of one shard, in the order they were written.

    Shapes:
        labels: int64 [n].
        offsets, sizes: int64 [n], the bytes of the PNG within the shard; 0, 0 for a lost one.
    """

    labels: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def sample_key(split: str, number: int) -> str:
    """What a sample is called: its number in the split, counted through all shards."""
    return f"{split}-{number:08d}"


def load_index(
    path: Path, shard: Shard, split: str, first: int, classes: tuple[str, ...], *, keep: bool = True
) -> ShardIndex:
    """The index of one shard: the one beside it, or one that is built.

    Where headers are damaged it is salvaged: samples that lack a member are lost.

    Args:
        path: the shard.
        shard: what the manifest says of it.
        split: "train" or "val".
        first: the number of its first sample.
        classes: names by label; a salvaged sample must agree with itself on its class.
        keep: write it beside the shard. Only for one that is known to be whole.

    Raises:
        OSError: the shard cannot be read.
    """
    beside = path.with_name(path.name + INDEX)
    index = read_index(beside, shard)
    if index is None:
        keys = [sample_key(split, first + i) for i in range(shard.num)]
        try:
            index = build_index(path, keys)
        except BadShardError:
            return salvage_index(path, keys, classes)
        if keep:
            write_index(beside, shard, index)
    return index


def build_index(path: Path, keys: list[str]) -> ShardIndex:
    """Read the headers of a shard, and its labels.

    A tar reader takes a damaged header for the end of the archive, so the end is looked at too.

    Raises:
        BadShardError: truncated, damaged, samples that lack a member, or others than ``keys``.
        OSError: it cannot be read.
    """
    labels: list[int] = []
    try:
        with path.open("rb") as file:
            samples = _read_members(file)
            if list(samples) != keys:
                raise BadShardError(f"{len(samples)} samples, not the {len(keys)} of the manifest")
            for key, members in samples.items():
                if missing := sorted(MEMBERS - members.keys()):
                    raise BadShardError(f"{key} has no {missing[0]}")
                offset, length = members["cls"]
                file.seek(offset)
                labels.append(_label(key, file.read(length)))
    except tarfile.TarError as error:
        raise BadShardError(f"damaged: {error}") from None
    places = np.array([members["png"] for members in samples.values()], dtype=np.int64)
    places = places.reshape(-1, 2)
    return ShardIndex(
        labels=np.array(labels, dtype=np.int64),
        offsets=places[:, 0].copy(),
        sizes=places[:, 1].copy(),
    )


def _read_members(file: BinaryIO) -> Members:
    """Where the members of a whole shard lie, by its headers."""
    samples: Members = {}
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
    return samples


def salvage_index(path: Path, keys: list[str], classes: tuple[str, ...]) -> ShardIndex:
    """What is left of a damaged shard: members whose headers are whole, wherever they lie.

    A sample counts where all its members are there and its two statements of its class agree.
    """
    data = path.read_bytes()
    samples: Members = {key: {} for key in keys}
    at = 0
    while at + BLOCK <= len(data):
        try:
            member = tarfile.TarInfo.frombuf(data[at : at + BLOCK], "utf-8", "surrogateescape")
        except tarfile.HeaderError:  # no header here, or a damaged one: it looks on
            at += BLOCK
            continue
        at += BLOCK
        key, _, extension = member.name.partition(".")
        if key in samples and extension in MEMBERS and at + member.size <= len(data):
            samples[key].setdefault(extension, (at, member.size))
            at += -(-member.size // BLOCK) * BLOCK
    rows = np.zeros((len(keys), 3), dtype=np.int64)  # label, offset, size
    for row, members in zip(rows, samples.values(), strict=True):
        if members.keys() == MEMBERS:
            cls, about = (data[o : o + n] for o, n in (members["cls"], members["json"]))
            try:
                label = int(cls)
                if 0 <= label < len(classes) and json.loads(about)["class_name"] == classes[label]:
                    row[:] = (label, *members["png"])
            except (ValueError, KeyError, TypeError):
                continue
    return ShardIndex(labels=rows[:, 0].copy(), offsets=rows[:, 1].copy(), sizes=rows[:, 2].copy())


def _label(key: str, text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadShardError(f"the class of {key} is not a number") from None


def read_index(source: Path | io.BytesIO, shard: Shard) -> ShardIndex | None:
    """An index that was written; None where it is absent, half a copy, or of other bytes."""
    try:
        with np.load(source, allow_pickle=False) as stored:
            if str(stored["stamp"]) != shard.sha256:
                return None
            index = ShardIndex(
                labels=stored["labels"], offsets=stored["offsets"], sizes=stored["sizes"]
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return index if len(index) == shard.num else None


def write_index(path: Path, shard: Shard, index: ShardIndex) -> None:
    """Write an index; a read-only or full disk is no error."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        stamp=np.array(shard.sha256),
        labels=index.labels,
        offsets=index.offsets,
        sizes=index.sizes,
    )
    try:
        files.write_bytes(path, buffer.getvalue())
    except OSError:
        return
