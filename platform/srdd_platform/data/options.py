"""What a training takes of its data: how images vary, and how they are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from srdd.errors import UserError

CACHE_GB = 50.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How shards are read, by every command that reads them."""

    max_bad: int | None = None  # damaged images of a split left out; default 0.1 %, at least 1
    cache: Path | None = None  # where shards at a URI are copied to; default ~/.cache/srdd
    cache_gb: float = CACHE_GB  # the most that may lie there, of all data

    def check_read(self) -> None:
        """Refuse values out of range.

        Raises:
            UserError: it names the option.
        """
        if self.max_bad is not None and self.max_bad < 0:
            raise UserError(f"--max-bad must be >= 0, got {self.max_bad}")
        if not self.cache_gb > 0:
            raise UserError(f"--cache-gb must be positive, got {self.cache_gb}")

    def alone(self) -> "ReadOptions":
        """These options without others beside them, for any process."""
        cache = self.cache.resolve() if self.cache else None
        return ReadOptions(max_bad=self.max_bad, cache=cache, cache_gb=self.cache_gb)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions(ReadOptions):
    """Options of every training; the first two decide its result."""

    crop: Literal["random", "centre"] | None = None  # of what --keep stored; random where it did
    flip: bool = False  # left and right, half of the time; a transformer's with --views
    loader_workers: int = 1  # threads that read and decode ahead; 0 reads between the steps

    def check_data(self) -> None:
        """Refuse values out of range.

        Raises:
            UserError: it names the option.
        """
        self.check_read()
        if self.loader_workers < 0:
            raise UserError(f"--loader-workers must be >= 0, got {self.loader_workers}")
