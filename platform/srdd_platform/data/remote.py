"""Shard directories elsewhere: copied to a local disk, whole and verified, before they are read.

A location is what :mod:`srdd_platform.core.location` takes. Shards are copied side by side, each
under a temporary name until its SHA-256 is the manifest's; ``manifest.json`` is written last, so a
directory that has one is whole. A copy that was stopped goes on with the shards that are missing;
of several processes one copies.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from filelock import FileLock
from pyarrow import fs

from srdd.errors import UserError
from srdd.json_files import parse_json
from srdd_platform.core import files
from srdd_platform.core.location import parse_location
from srdd_platform.core.storage import answered, from_store, open_store_at, store_says
from srdd_platform.data.index import load_index
from srdd_platform.data.manifest import MANIFEST, Manifest, Shard

CHUNK = 2**20  # bytes read at a time
LOCK = ".fetch.lock"

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteShards:
    """A shard directory on some filesystem."""

    filesystem: fs.FileSystem
    root: str  # its path there
    name: str  # its location, for a person

    def read(self, file: str) -> bytes:
        """The content of a file in it.

        Raises:
            UserError: it cannot be read, or does not answer.
        """

        def act() -> bytes:
            with self.filesystem.open_input_stream(f"{self.root}/{file}") as stream:
                data: bytes = stream.read()
            return data

        return answered(f"cannot read {self.name}/{file}", act)

    def manifest(self) -> tuple[bytes, Manifest]:
        """Its manifest, as bytes and as an object.

        Raises:
            UserError: it cannot be read, or is none.
        """
        text = self.read(MANIFEST)
        return text, Manifest.from_json(parse_json(text, f"{self.name}/{MANIFEST}"), self.name)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Size in bytes and time of change in ns of the files in it, by name.

        Raises:
            UserError: it cannot be read.
        """

        def act() -> dict[str, tuple[int, int]]:
            found = self.filesystem.get_file_info(fs.FileSelector(self.root))
            files = [info for info in found if info.type == fs.FileType.File]
            return {info.base_name: (info.size, info.mtime_ns or 0) for info in files}

        return answered(f"cannot read {self.name}", act)

    def chunks(self, file: str) -> Iterator[bytes]:
        """The content of a file in it, from front to back.

        Raises:
            UserError: it cannot be read.
        """
        with _reading(f"{self.name}/{file}"):
            stream = self.filesystem.open_input_stream(f"{self.root}/{file}")
        with stream:
            while True:
                with _reading(f"{self.name}/{file}"):
                    data: bytes = stream.read(CHUNK)
                if not data:
                    return
                yield data

    def copy(self, shard: Shard, target: Path, stop: Event) -> None:
        """Copy a shard; it appears when its SHA-256 is the manifest's.

        Raises:
            UserError: it cannot be read, or is damaged.
            StoppedError: ``stop`` was set.
            OSError: the disk is full.
        """
        source = f"{self.name}/{shard.name}"
        found, size = hashlib.sha256(), 0
        with files.atomic_path(target) as temporary, temporary.open("wb") as file:
            for data in self.chunks(shard.name):
                if stop.is_set():
                    raise StoppedError
                found.update(data)
                size += len(data)
                if size > shard.bytes:
                    break
                file.write(data)
            if found.hexdigest() != shard.sha256:
                raise UserError(f"{source} is damaged: its SHA-256 is not the manifest's; copy it "
                                "there again")  # fmt: skip


class StoppedError(Exception):
    """Another shard could not be copied, or the person gave up."""


def locate(
    location: str, filesystem: fs.FileSystem | None = None, option: str = "--data"
) -> RemoteShards:
    """The shards at a location; with ``filesystem``, at a path there.

    Args:
        location: what the option gives.
        filesystem: where ``location`` is not a location of its own.
        option: its name for messages.

    Raises:
        UserError: it is not a location, or pyarrow cannot open it.
    """
    if filesystem is not None:
        return RemoteShards(filesystem=filesystem, root=location.rstrip("/"), name=location)
    place = parse_location(location, option)
    name = str(place)
    if place.local is not None:
        filesystem, root = fs.LocalFileSystem(), os.path.realpath(place.local)
    else:
        filesystem, root = open_store_at(place, f"cannot read {name}")
    return RemoteShards(filesystem=filesystem, root=root, name=name)


def fetch(
    location: str,
    out: Path,
    *,
    workers: int = 4,
    filesystem: fs.FileSystem | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Copy a shard directory to ``out``. Given again it copies what is missing or damaged.

    Args:
        location: its URI or path; with ``filesystem``, its path there.
        out: the local directory.
        workers: shards copied at the same time.
        filesystem: where ``location`` is not a URI.
        progress: called with (bytes done, bytes in all).

    Raises:
        UserError: the location cannot be read or holds no shards, a shard is damaged there, the
            disk is too small, or ``out`` holds something else.
    """
    if workers < 1:
        raise UserError(f"workers counts from 1, got {workers}", field="workers")
    place = locate(location, filesystem, "--uri")
    text, manifest = place.manifest()
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    _check_target(out, text, shards)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / LOCK):
        _check_target(out, text, shards)  # another process may have been here
        _copy_missing(place, shards, out, workers, progress)
        for split, content in manifest.splits.items():
            for shard in content.shards:  # each is known to be whole
                first = manifest.first(split, shard.name)
                load_index(out / shard.name, shard, split, first, manifest.classes)
        files.write_bytes(out / MANIFEST, text)
    return manifest


def _copy_missing(
    place: RemoteShards, shards: Sequence[Shard], out: Path, workers: int, progress: Progress | None
) -> None:
    """Copy the shards that are not whole in ``out`` yet, side by side. An error ends all."""
    todo = [shard for shard in shards if not _is_whole(out / shard.name, shard)]
    total = sum(shard.bytes for shard in shards)
    done = total - sum(shard.bytes for shard in todo)
    if total - done > (free := shutil.disk_usage(out).free):
        raise UserError(f"{out} has {free / 1e9:.1f} GB free, {place.name} needs "
                        f"{(total - done) / 1e9:.1f}: choose another disk")  # fmt: skip
    stop = Event()
    with ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(place.copy, shard, out / shard.name, stop): shard for shard in todo}
        try:
            for job in as_completed(jobs):
                job.result()
                done += jobs[job].bytes
                if progress is not None:
                    progress(done, total)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_whole(path: Path, shard: Shard) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == shard.bytes
        and files.sha256_file(path) == shard.sha256
    )


def _check_target(out: Path, text: bytes, shards: list[Shard]) -> None:
    """Refuse a directory with other shards, or with files that are none.

    Raises:
        UserError: it names what is there.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file: choose a directory")
    if (out / MANIFEST).is_file():
        if (out / MANIFEST).read_bytes() != text:
            raise UserError(f"{out} holds other shards: choose another directory, or remove it")
        return
    names = {shard.name + end for shard in shards for end in ("", ".index.npz")}
    for path in sorted(out.iterdir()):
        if path.name not in names and not path.name.startswith("."):
            raise UserError(f"{out} holds {path.name}, which is no shard: choose another directory")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what pyarrow raises into one line that names the location."""
    try:
        yield
    except Exception as error:
        if not from_store(error):
            raise
        raise UserError(f"cannot read {name}: {store_says(error)}") from None
