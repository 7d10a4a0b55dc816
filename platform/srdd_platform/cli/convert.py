"""The commands ``srdd convert`` and ``srdd export``."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from srdd.var.masks import Mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Convert:
    """Make a pipeline directory of official weights: VAR, MVAR, HMAR, or VAR's training state."""

    transformer: Path  # .pth, .pt or .safetensors; a pickle's code is never run
    out: Path  # pipeline directory, new
    vae: Path | None = None  # the tokenizer; left out where the transformer's file holds both
    patch_nums: str | None = None  # "1,2,3": the scales, for lengths that are not published
    mask: Mask | None = None  # default: block_causal (VAR), markov_local (MVAR), markov (HMAR)
    num_heads: int | None = None  # where no tensor tells it; default: the depth
    classes: Path | None = None  # label file: lines, table or JSON; default: the indices
    show_keys: bool = False  # print every key and what became of it

    def run(self, console: Console) -> None:
        """Read, check and write."""
        from srdd_platform.cli.convert import convert_to

        convert_to(self, console)


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Write a pipeline as VAR's two files, which VAR's own code loads strictly."""

    model: Path  # pipeline or run directory
    vae: Path  # the tokenizer's file, new: .pth, .pt or .safetensors
    transformer: Path  # the transformer's, likewise

    def run(self, console: Console) -> None:
        """Load and write."""
        from srdd_platform.cli.convert import export_to

        export_to(self, console)
