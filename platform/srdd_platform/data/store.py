"""Where the shards of a data set lie, and how their bytes are read.

A local directory is read as it is; a URI through a local cache (:mod:`srdd_platform.data.cache`).
Readers see no difference: the bytes of a sample are the same, wherever they come from.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from srdd.errors import UserError
from srdd_platform.core.location import parse_location
from srdd_platform.data.damage import Damage, Inspections, inspect_shard, stamp, usable
from srdd_platform.data.index import ShardIndex, load_index
from srdd_platform.data.manifest import Manifest, Request, Shard

MAX_OPEN = 256  # shards kept open by a process; with more, each read opens and closes


class Store(Protocol):
    """The shards of a data set."""

    manifest: Manifest

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    def inspect(self, split: str) -> list[Damage]:
        """What of a split cannot be used."""
        ...

    def index(self, split: str, shard: Shard) -> ShardIndex:
        """Where the samples of a shard lie in it."""
        ...

    def read(self, requests: Sequence[Request]) -> list[bytes]:
        """Bytes of shards."""
        ...

    def filling(self, shards: Sequence[Shard]) -> AbstractContextManager[None]:
        """While this holds, shards that lie afar are brought here in the background."""
        ...


class LocalStore:
    """A shard directory on a local disk.

    It may be pickled, forked and read from threads: file descriptors belong to a process, and no
    position is shared.
    """

    def __init__(self, directory: Path) -> None:
        """Open a directory.

        Raises:
            UserError: it holds no shards.
        """
        self.directory = directory
        self.manifest = Manifest.load(directory)
        self._files: dict[str, int] = {}
        self._pid = os.getpid()
        self._shards = sum(len(split.shards) for split in self.manifest.splits.values())

    @property
    def name(self) -> str:
        """The directory."""
        return str(self.directory)

    def inspect(self, split: str) -> list[Damage]:
        """What of a split cannot be used; its bytes are looked at once."""
        stamps = {}
        for shard in self.manifest.splits[split].shards:
            try:
                stat = (self.directory / shard.name).stat()
                stamps[shard.name] = stamp(stat.st_size, stat.st_mtime_ns)
            except OSError:
                continue

        def look(shard: Shard) -> list[Damage]:
            try:
                return inspect_shard(self.directory / shard.name, shard, self.manifest, split)
            except OSError as error:
                why = error.strerror or str(error)
                return [Damage(name=shard.name, num=shard.num, why=why)]

        return Inspections(self.directory).split(self.manifest, split, stamps, look)

    def index(self, split: str, shard: Shard) -> ShardIndex:
        """Where the samples of a shard lie in it.

        Raises:
            UserError: the shard cannot be read.
        """
        first = self.manifest.first(split, shard.name)
        path = self.directory / shard.name
        try:
            return load_index(path, shard, split, first, self.manifest.classes, keep=False)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None

    def read(self, requests: Sequence[Request]) -> list[bytes]:
        """Bytes of shards.

        Raises:
            UserError: a shard cannot be read.
        """
        return [self._read(*request) for request in requests]

    def filling(self, shards: Sequence[Shard]) -> AbstractContextManager[None]:
        """Nothing is to be brought."""
        return nullcontext()

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        if self._pid != os.getpid():  # after a fork, or unpickled elsewhere
            self._files, self._pid = {}, os.getpid()
        file = self._files.get(shard)
        path = self.directory / shard
        try:
            if file is not None:
                return os.pread(file, size, offset)
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(file, size, offset)
            finally:
                if self._shards > MAX_OPEN or self._files.setdefault(shard, file) != file:
                    os.close(file)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        if getattr(self, "_pid", None) == os.getpid():
            for file in self._files.values():
                os.close(file)


def open_store(location: str | Path, cache: Path | None = None, cache_gb: float = 0.0) -> Store:
    """The shards at a path or URI.

    Args:
        location: a shard directory, or its URI.
        cache: directory for copies of what lies at a URI; None for the user's own.
        cache_gb: the most that may lie in it, in 10^9 bytes.

    Raises:
        UserError: it is not a location, there are none, or they cannot be read.
    """
    place = parse_location(str(location), "--data")
    if place.scheme:
        from srdd_platform.data.cache import CachedStore, default_cache  # needs pyarrow

        return CachedStore(str(place), cache or default_cache(), round(cache_gb * 1e9))
    return LocalStore(Path(place.path))


def inspected(store: Store, max_bad: int | None) -> dict[str, dict[str, int]]:
    """What is left out of each split: found by looking at all of it once.

    Raises:
        UserError: it is more than ``max_bad`` samples of a split.
    """
    found = {split: store.inspect(split) for split in store.manifest.splits}
    return usable(found, store.manifest, store.name, max_bad)
