"""What a training takes of its data: how images vary, and how they are read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from srdd.errors import UserError
from srdd_platform.data.augment import Augmentation
from srdd_platform.data.damage import SHOWN, Skipped, usable
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.store import Store, open_store

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

    def open(self, data: str | Path) -> Store:
        """The shards at a path or URI.

        Raises:
            UserError: there are none, or they cannot be read.
        """
        return open_store(data, self.cache, self.cache_gb)


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


def inspected(store: Store, max_bad: int | None) -> dict[str, dict[str, int]]:
    """What is left out of each split: found by looking at all of it once.

    Raises:
        UserError: it is more than ``max_bad`` samples of a split.
    """
    found = {split: store.inspect(split) for split in store.manifest.splits}
    return usable(found, store.manifest, store.name, max_bad)


def left_out(skipped: Mapping[str, Skipped]) -> str:
    """What is left out, counted and named; "" for nothing."""
    return "; ".join(
        f"{sum(of.values())} {split} images ({', '.join(list(of)[:SHOWN])}"
        f"{', ...' if len(of) > SHOWN else ''})"
        for split, of in skipped.items()
    )


def pixel_settings(options: DataOptions, manifest: Manifest) -> dict[str, Any]:
    """The settings of a training on pixels; none where every image is read as it is.

    Raises:
        UserError: random crops are asked for, and nothing is stored to crop.
    """
    margin = manifest.stored_side > manifest.resolution
    crop = margin if options.crop is None else options.crop == "random"
    augmentation = Augmentation(crop=crop, flip=options.flip)
    augmentation.check(manifest)
    found = {name: value for name, value in asdict(augmentation).items() if name != "seed"}
    return {"augmentation": found} if any(found.values()) else {}


def code_settings(options: DataOptions, views: int) -> dict[str, Any]:
    """The settings of a training on codes; none where every image has one view.

    Raises:
        UserError: a crop is chosen, which views make by themselves.
    """
    if options.crop is not None:
        raise UserError("--crop is for trainings on pixels: a transformer trains on codes, whose "
                        "views are crops (--views)")  # fmt: skip
    return {"codes": {"views": views, "flip": options.flip}} if views > 1 else {}
