"""The commands ``srdd data prepare``, ``srdd data fetch`` and ``srdd data encode``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from srdd.class_names import escaped
from srdd.errors import UserError
from srdd_platform.data.options import ReadOptions

if TYPE_CHECKING:
    from rich.console import Console

SourceName = Literal["digits", "folder"]
RecipeName = Literal["mini-imagenet", "sun397", "ffhq", "afhq", "cifar10", "imagenet"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataPrepare:
    """Write images as WebDataset shards with a manifest."""

    out: Path  # shard directory
    source: SourceName | None = None  # scikit-learn's digits, or a class/image tree
    recipe: RecipeName | None = None  # instead: a public set as its site hands it out
    path: Path | None = None  # the tree; train/ and val/ or test/ above the classes are its split
    resolution: int | None = None  # pixels a side; a recipe has its own: 256, cifar10 32
    keep: float = 1.0  # 1.125: store that much more of the side, for random crops
    seed: int = 0  # of the order, and of what is chosen where the source has no split
    allow_counts: bool = False  # take a recipe's folder that lacks images
    max_bad: int | None = None  # unreadable images before giving up; default 1 %, at least 10

    def run(self, console: "Console") -> None:
        """Prepare, with a progress bar."""
        from srdd_platform.cli.terminal import progress_bar
        from srdd_platform.data.recipes import RECIPES
        from srdd_platform.data.shards import prepare

        if (self.source is None) == (self.recipe is None):
            raise UserError("give either --source or --recipe")
        recipe = None if self.recipe is None else RECIPES[self.recipe]
        resolution = self.resolution
        if resolution is None:
            if recipe is None:
                raise UserError(f"source {self.source} has no size of its own: give --resolution")
            resolution = recipe.resolution
        with progress_bar(console, "images") as progress:
            manifest = prepare(
                source=recipe or self.source or "", path=self.path, resolution=resolution,
                out=self.out, seed=self.seed, keep=self.keep, allow_counts=self.allow_counts,
                max_bad=self.max_bad, progress=progress,
            )  # fmt: skip
        sizes = ", ".join(f"{name} {split.num}" for name, split in manifest.splits.items())
        num = len(manifest.classes)
        found = f"{self.out}: {num} class{'es' * (num != 1)}, {sizes} images"
        console.print(found, soft_wrap=True)
        if manifest.rule:
            console.print(f"Split: {manifest.rule}", soft_wrap=True)
        for note in manifest.notes:
            console.print(f"Note: {note}", soft_wrap=True)
        for skipped in manifest.skipped:
            line = f"skipped {escaped(skipped.origin)}: {skipped.reason}"
            console.print(line, style="yellow", soft_wrap=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFetch:
    """Copy a shard directory from a bucket to a local disk; given again it goes on."""

    uri: str  # s3://bucket/folder, gs://bucket/folder, file:///folder
    out: Path  # shard directory
    workers: int = 4  # shards copied at the same time

    def run(self, console: "Console") -> None:
        """Copy and verify, with a progress bar."""
        from srdd_platform.cli.terminal import progress_bar
        from srdd_platform.data.remote import fetch

        with progress_bar(console, "bytes") as progress:
            manifest = fetch(self.uri, self.out, workers=self.workers, progress=progress)
        num = sum(split.num for split in manifest.splits.values())
        console.print(f"{self.out}: {num} images, verified", soft_wrap=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataEncode(ReadOptions):
    """Extract every image's codes, once for both masks."""

    data: str  # shard directory, or its URI
    tokenizer: Path  # run directory of a finished tokenizer
    views: int = 1  # codes of each training image: with 2 or more, of random crops and flips
    flip: bool = False  # flip half of the views, too
    codes: Path | None = None  # folder for codes; default beside the tokenizer
    device: Literal["cpu", "cuda"] = "cpu"
    address: str | None = None  # an existing Ray cluster

    def run(self, console: "Console") -> None:
        """Encode under Ray."""
        from srdd_platform.cli.terminal import progress_bar
        from srdd_platform.core.ray_session import session
        from srdd_platform.data.code_places import codes_dir
        from srdd_platform.data.codes import encode
        from srdd_platform.data.damage import left_out
        from srdd_platform.data.store import inspected, open_store

        self.check_read()
        store = open_store(self.data, self.cache, self.cache_gb)
        skipped = inspected(store, self.max_bad)
        if skipped:
            line = f"Left out of {store.name}: {left_out(skipped)}"
            console.print(line, style="yellow", soft_wrap=True)
        directory = codes_dir(
            store, self.tokenizer, views=self.views, flip=self.flip, skipped=skipped,
            place=self.codes,
        )  # fmt: skip
        if not (directory / "manifest.json").exists():
            with session(self.address) as cluster, progress_bar(console, "shards") as progress:
                cluster.require(cpus=1, gpus=int(self.device == "cuda"))
                encode(
                    self.data, self.tokenizer, views=self.views, flip=self.flip,
                    reading=self.alone(), device=self.device, out=directory, progress=progress,
                )  # fmt: skip
        console.print(f"Codes: {directory}", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Data:
    """Prepare or copy images, extract codes."""

    command: (
        Annotated[DataPrepare, tyro.conf.subcommand("prepare")]
        | Annotated[DataFetch, tyro.conf.subcommand("fetch")]
        | Annotated[DataEncode, tyro.conf.subcommand("encode")]
    )

    def run(self, console: "Console") -> None:
        """Run the command chosen."""
        self.command.run(console)
