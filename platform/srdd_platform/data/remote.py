"""Shard directories elsewhere: copied to a local disk, whole and verified, before they are read.

A location is any URI that pyarrow opens: ``s3://bucket/folder``, ``gs://bucket/folder``,
``file:///folder``. Shards are copied side by side, each under a temporary name until its SHA-256
is the manifest's; ``manifest.json`` is written last, so a directory that has one is whole. A copy
that was stopped goes on with the shards that are missing; of several processes one copies.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow
from filelock import FileLock
from pyarrow import fs

from srdd.errors import UserError
from srdd_platform import files
from srdd_platform.data.manifest import MANIFEST, Manifest, Shard

CHUNK = 2**20  # bytes read at a time
LOCK = ".fetch.lock"


def fetch(
    location: str,
    out: Path,
    *,
    workers: int = 4,
    filesystem: fs.FileSystem | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Copy a shard directory to ``out``. Given again it copies what is missing or damaged.

    Args:
        location: its URI; with ``filesystem``, its path there.
        out: the local directory.
        workers: shards copied at the same time.
        filesystem: where ``location`` is not a URI.
        progress: called with (bytes done, bytes in all).

    Raises:
        UserError: the location cannot be read or holds no shards, a shard is damaged there, the
            disk is too small, or ``out`` holds something else.
    """
    if workers < 1:
        raise UserError(f"workers counts from 1, got {workers}")
    name = _shown(location)
    with _reading(name):
        if filesystem is None:
            filesystem, location = fs.FileSystem.from_uri(location)
    root = location.rstrip("/")
    with _reading(f"{name.rstrip('/')}/{MANIFEST}"):
        with filesystem.open_input_stream(f"{root}/{MANIFEST}") as stream:
            text: bytes = stream.read()
    manifest = Manifest.from_json(_json(text, name), name)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    _check_target(out, text, shards)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / LOCK):
        _check_target(out, text, shards)  # another process may have been here
        todo = [shard for shard in shards if not _is_whole(out / shard.name, shard)]
        total = sum(shard.bytes for shard in shards)
        done = total - sum(shard.bytes for shard in todo)
        if total - done > (free := shutil.disk_usage(out).free):
            raise UserError(f"{out} has {free / 1e9:.1f} GB free, {name} needs "
                            f"{(total - done) / 1e9:.1f}: choose another disk")  # fmt: skip
        stop = Event()
        with ThreadPoolExecutor(workers) as pool:
            jobs = {
                pool.submit(_copy, filesystem, root, name, shard, out, stop): shard
                for shard in todo
            }
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
        files.write_bytes(out / MANIFEST, text)
    return manifest


class _StoppedError(Exception):
    """Another shard could not be copied, or the person gave up."""


def _copy(
    filesystem: fs.FileSystem, root: str, name: str, shard: Shard, out: Path, stop: Event
) -> None:
    source = f"{name.rstrip('/')}/{shard.name}"
    found, size = hashlib.sha256(), 0
    with _reading(source):
        stream = filesystem.open_input_stream(f"{root}/{shard.name}")
    with stream, files.atomic_path(out / shard.name) as temporary, temporary.open("wb") as file:
        while size <= shard.bytes:
            if stop.is_set():
                raise _StoppedError
            with _reading(source):
                data: bytes = stream.read(CHUNK)
            if not data:
                break
            found.update(data)
            size += len(data)
            file.write(data)
        if found.hexdigest() != shard.sha256:
            raise UserError(f"{source} is damaged: its SHA-256 is not the manifest's; copy it "
                            "there again")  # fmt: skip


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


def _json(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{name}/{MANIFEST} is not valid JSON: {error}") from None


def _shown(location: str) -> str:
    """A location without a password."""
    return re.sub(r"//[^/@]*@", "//***@", location)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what pyarrow raises into one line that names the location, without its password."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError, pyarrow.ArrowException) as error:
        why = " ".join(_shown(str(error)).split())[:200]
        raise UserError(f"cannot read {name}: {why}") from None
