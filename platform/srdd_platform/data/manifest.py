"""What a shard directory holds: ``manifest.json`` and the objects it is read into."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd_platform.core import files
from srdd_platform.data.leftovers import Note
from srdd_platform.data.pixels import stored_side

FORMAT = "srdd-shards-1"
MANIFEST = "manifest.json"

Request = tuple[str, int, int]  # bytes to read: a shard's name, an offset and a size in it


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar file."""

    name: str
    num: int  # samples
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One split: its size, its size by class name, its shards in order."""

    num: int
    per_class: dict[str, int]
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """One image that could not be used, and why."""

    origin: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the shards were made from. Equal settings give equal shards."""

    source: str
    resolution: int
    seed: int
    val_fraction: float
    shard_size_images: int
    listing: str  # hash of the source's file names and sizes
    keep: float = 1.0  # stored shorter side over resolution; above 1 readers crop


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a shard directory holds: ``manifest.json`` as an object.

    ``rule``, ``unconditional``, ``notes`` and the setting ``keep`` are written where they are not
    the default.
    """

    settings: Settings
    classes: tuple[str, ...]
    splits: dict[str, Split]
    skipped: tuple[Skipped, ...]
    rule: str = ""  # how images, classes and split were chosen
    unconditional: bool = False  # meant to be trained on without labels
    notes: tuple[Note, ...] = ()  # what was not used, or in part, counted by kind

    @property
    def resolution(self) -> int:
        """Side of the images as they are read, in pixels."""
        return self.settings.resolution

    @property
    def stored_side(self) -> int:
        """Shorter side of the images as they are stored, in pixels."""
        return stored_side(self.settings.resolution, self.settings.keep)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the data: equal where classes and shard bytes are equal."""
        shards = {split: [s.sha256 for s in self.splits[split].shards] for split in self.splits}
        return files.digest([FORMAT, self.resolution, self.classes, shards])

    def first(self, split: str, name: str) -> int:
        """The number in its split of a shard's first sample."""
        first = 0
        for shard in self.splits[split].shards:
            if shard.name == name:
                return first
            first += shard.num
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """The content of ``manifest.json``."""
        settings = asdict(self.settings)
        if self.settings.keep == 1.0:
            settings.pop("keep")
        return {
            "format": FORMAT,
            "source": settings.pop("source"),
            "resolution": settings.pop("resolution"),
            "settings": settings,
            **({"rule": self.rule} if self.rule else {}),
            **({"unconditional": True} if self.unconditional else {}),
            **({"notes": [asdict(note) for note in self.notes]} if self.notes else {}),
            "classes": list(self.classes),
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "skipped": [asdict(one) for one in self.skipped],
        }

    @classmethod
    def load(cls, directory: Path) -> "Manifest":
        """Read the manifest of a shard directory.

        Raises:
            UserError: the directory is missing, holds something else, or its manifest is damaged.
        """
        path = directory / MANIFEST
        if not path.is_file():
            wrong = f"holds no {MANIFEST}" if directory.is_dir() else "is not a directory"
            raise UserError(f"{directory} {wrong}: make the shards with `srdd data prepare`")
        return cls.from_json(files.read_json(path), str(path))

    @classmethod
    def from_json(cls, value: Any, name: str) -> "Manifest":
        """The content of a ``manifest.json``; errors give ``name``.

        Raises:
            UserError: it has another format, or is damaged.
        """
        found = value.get("format") if isinstance(value, dict) else None
        if found != FORMAT:
            raise UserError(f"{name} has format {found!r}, not {FORMAT!r}: give a directory made "
                            "by `srdd data prepare`")  # fmt: skip
        try:
            return _parse(value)
        except _InconsistentError as error:
            raise UserError(f"{name} is damaged ({error}): prepare the data again") from None
        except KeyError as error:
            raise UserError(f"{name} lacks {error.args[0]!r}: prepare the data again") from None
        except (TypeError, ValueError, AttributeError):
            raise UserError(f"{name} is damaged: prepare the data again") from None


class _InconsistentError(Exception):
    """Parts of a manifest contradict each other."""


def _parse(value: dict[str, Any]) -> Manifest:
    classes = tuple(str(name) for name in value["classes"])
    splits = {
        str(name): Split(
            num=int(split["num"]),
            per_class={str(key): int(num) for key, num in split["per_class"].items()},
            shards=tuple(Shard(**shard) for shard in split["shards"]),
        )
        for name, split in value["splits"].items()
    }
    for name, split in splits.items():
        if split.num != sum(shard.num for shard in split.shards):
            raise _InconsistentError(f"the shards of {name} do not add up to {split.num} samples")
        if any(os.path.basename(shard.name) != shard.name for shard in split.shards):
            raise _InconsistentError(f"a shard of {name} lies outside the directory")
    return Manifest(
        settings=Settings(
            source=value["source"], resolution=int(value["resolution"]), **value["settings"]
        ),
        classes=classes,
        splits=splits,
        skipped=tuple(Skipped(**one) for one in value["skipped"]),
        rule=str(value.get("rule", "")),
        unconditional=bool(value.get("unconditional", False)),
        notes=tuple(Note(**note) for note in value.get("notes", ())),
    )
