"""Shards at a URI, read through a local cache of bounded size.

A training begins at once: indexes are small and come first, samples of shards that are not here
yet are read from afar by their byte range, and a thread brings whole shards meanwhile, each
verified before it appears. What a reader gets does not depend on what is here.

::

    <cache>/.lock                                one writer at a time, of all processes
    <cache>/<fingerprint of the data>/*.tar      shards; the time of change is that of last use
    <cache>/<fingerprint of the data>/*.index.npz, .inspected.json

The bound holds for the shards of all data sets together. The least recently used ones make room,
but none that was used in the last ten minutes: a training reads all its shards all the time, so
where they do not fit, those that fit stay and the others are read from afar.
"""

import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pyarrow
from filelock import FileLock, Timeout

from srdd.errors import UserError
from srdd_platform.core.file_errors import StoreError
from srdd_platform.core.storage import from_store, store_says
from srdd_platform.data.damage import Damage, Inspections, inspect_shard, stamp
from srdd_platform.data.index import INDEX, ShardIndex, load_index, read_index, write_index
from srdd_platform.data.manifest import Request, Shard
from srdd_platform.data.modes import BadImageError
from srdd_platform.data.pixels import verify_png
from srdd_platform.data.remote import StoppedError, locate

IN_USE_S = 600.0  # since a shard's last use, in which it is not removed
TOUCH_S = 60.0  # between notes of a shard's use
RETRY_S = 30.0  # between looks for room
READERS = 16  # ranges read at the same time
AT_ONCE = 4  # shards brought at the same time


def default_cache() -> Path:
    """The user's own cache directory.

    Raises:
        UserError: the user has no home directory.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "srdd"
    except RuntimeError:
        raise UserError(
            "there is no home directory for copies of shards: give --cache DIR"
        ) from None


class CachedStore:
    """The shards at a URI."""

    def __init__(self, uri: str, cache: Path, bound: int) -> None:
        """Open a URI; its manifest is read.

        Args:
            uri: ``s3://bucket/folder``, ``gs://bucket/folder`` or ``file:///folder``.
            cache: the directory for copies, of this and other data sets.
            bound: bytes of shards that may lie in it.

        Raises:
            UserError: it is not a location, cannot be read, or the cache is of no use.
        """
        self._place = locate(uri)
        _, self.manifest = self._place.manifest()
        shards = [shard for split in self.manifest.splits.values() for shard in split.shards]
        largest = max((shard.bytes for shard in shards), default=0)
        if bound < largest:
            raise UserError(f"a shard of {self.name} has {largest / 1e9:.2f} GB, a cache of "
                            f"{bound / 1e9:g} GB holds none: raise --cache-gb")  # fmt: skip
        self._cache, self._bound = cache, bound
        self.directory = cache / self.manifest.fingerprint
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--cache {cache}: {error.strerror}; give a folder that can be "
                            "written") from None  # fmt: skip
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="read from afar")
        self._afar: dict[str, pyarrow.NativeFile] = {}
        self._used: dict[str, float] = {}
        self._error: UserError | None = None

    @property
    def name(self) -> str:
        """The URI."""
        return self._place.name

    def inspect(self, split: str) -> list[Damage]:
        """What of a split cannot be used.

        Sizes are compared at once. Bytes are compared as they arrive; of a shard without an index
        they arrive now.

        Raises:
            UserError: the URI cannot be read.
        """
        stamps = {name: stamp(*found) for name, found in self._place.sizes().items()}

        def look(shard: Shard) -> list[Damage]:
            if self._index(shard) is not None:
                return []
            with self._copied(shard) as path:
                damages = inspect_shard(path, shard, self.manifest, split)
                index = read_index(path.with_name(path.name + INDEX), shard)
            if index is not None:
                write_index(self.directory / (shard.name + INDEX), shard, index)
            return damages

        return Inspections(self.directory).split(self.manifest, split, stamps, look)

    def index(self, split: str, shard: Shard) -> ShardIndex:
        """Where the samples of a shard lie in it.

        Raises:
            UserError: the shard cannot be read.
        """
        index = self._index(shard)
        if index is None:
            first = self.manifest.first(split, shard.name)
            with self._copied(shard) as path:
                index = load_index(path, shard, split, first, self.manifest.classes, keep=False)
        return index

    def read(self, requests: Sequence[Request]) -> list[bytes]:
        """Bytes of shards, from here or from afar.

        Raises:
            UserError: a shard is damaged there.
            StoreError: it cannot be read.
        """
        if self._error is not None:
            raise self._error
        found = [self._near(*request) for request in requests]
        missing = [i for i, data in enumerate(found) if data is None]
        for i, data in zip(missing, self._pool.map(self._far, [requests[i] for i in missing]),
                           strict=True):  # fmt: skip
            found[i] = data
        return [data for data in found if data is not None]

    @contextmanager
    def filling(self, shards: Sequence[Shard]) -> Iterator[None]:
        """While this holds, a thread brings shards here, in their order, as far as there is room.

        One that is damaged there is an error of the next :meth:`read`.
        """
        stop = Event()
        thread = Thread(target=self._fill, args=(shards, stop), daemon=True, name="fill the cache")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def bring(self, shards: Sequence[Shard], stop: Event) -> int:
        """Copy some shards that are not here, as many as there is room for; returns their number.

        Raises:
            UserError: a shard cannot be read, or is damaged.
            StoppedError: ``stop`` was set.
            OSError: the disk is full.
        """
        lock = FileLock(self._cache / ".lock")
        while True:
            if stop.is_set():
                raise StoppedError
            try:
                lock.acquire(timeout=1.0)
                break
            except Timeout:
                continue
        try:
            todo = [shard for shard in shards if not (self.directory / shard.name).exists()]
            while todo and not make_room(self._cache, sum(s.bytes for s in todo), self._bound):
                todo.pop()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                copies = [
                    pool.submit(self._place.copy, shard, self.directory / shard.name, stop)
                    for shard in todo
                ]
                for copy in copies:
                    copy.result()
            return len(todo)
        finally:
            lock.release()

    def _fill(self, shards: Sequence[Shard], stop: Event) -> None:
        try:
            while not stop.is_set():
                todo = [s for s in shards if not (self.directory / s.name).exists()]
                if not todo or not self.bring(todo[:AT_ONCE], stop):
                    stop.wait(RETRY_S)
        except UserError as error:
            self._error = error
        except StoppedError:
            pass
        except OSError:  # the disk is full: what is not here is read from afar
            pass

    def _near(self, shard: str, offset: int, size: int) -> bytes | None:
        """Bytes of a shard that is here; it is not kept open, or removing it would free nothing."""
        path = self.directory / shard
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            now = time.monotonic()
            if now - self._used.get(shard, -TOUCH_S) >= TOUCH_S:
                self._used[shard] = now
                os.utime(file)
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def _far(self, request: Request) -> bytes:
        shard, offset, size = request
        try:
            file = self._afar.get(shard)
            if file is None:
                file = self._place.filesystem.open_input_file(f"{self._place.root}/{shard}")
                self._afar[shard] = file
            data: bytes = file.read_at(size, offset)
        except Exception as error:
            if not from_store(error):
                raise
            why = store_says(error)
            raise StoreError(f"cannot read {self.name}/{shard}: {why}") from None
        try:
            verify_png(data)
        except BadImageError as error:
            raise UserError(f"{self.name}/{shard} is {error} at byte {offset}: copy it there "
                            "again") from None  # fmt: skip
        return data

    def _index(self, shard: Shard) -> ShardIndex | None:
        """The index that lies here, or beside the shard there."""
        here = self.directory / (shard.name + INDEX)
        index = read_index(here, shard)
        if index is None:
            try:
                index = read_index(io.BytesIO(self._place.read(shard.name + INDEX)), shard)
            except UserError:  # there is none
                return None
            if index is not None:
                write_index(here, shard, index)
        return index

    @contextmanager
    def _copied(self, shard: Shard) -> Iterator[Path]:
        """The bytes of a shard as they are there, whether whole or not."""
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".look") as directory:
            path = Path(directory) / shard.name
            with path.open("wb") as file:
                for data in self._place.chunks(shard.name):
                    file.write(data)
            yield path


def make_room(cache: Path, needed: int, bound: int, now: float | None = None) -> bool:
    """Remove the least recently used shards until ``needed`` bytes fit; whether they do.

    The caller holds the lock, so what is half-written was left by one that was killed.
    """
    for left in cache.glob("*/.*.tar.????????.tmp"):
        left.unlink(missing_ok=True)
    held = []
    for path in cache.glob("*/*.tar"):
        stat = path.stat()
        held.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in held)
    oldest = (time.time() if now is None else now) - IN_USE_S
    for used, size, path in sorted(held):
        if total + needed <= bound or used > oldest:
            break
        path.unlink(missing_ok=True)
        total -= size
    return total + needed <= bound
