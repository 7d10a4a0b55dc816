"""The commands ``srdd convert`` and ``srdd export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from srdd.var.masks import Mask
from srdd_platform.core.parsing import integers

if TYPE_CHECKING:
    from rich.console import Console


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

    def run(self, console: "Console") -> None:
        """Read, check and write."""
        from srdd_platform.core.official_files import convert
        from srdd_platform.data.label_files import read_class_names

        sides = None if self.patch_nums is None else integers(self.patch_nums, "patch_nums")
        convert(
            self.transformer, self.out, vae=self.vae, patch_nums=sides, mask=self.mask,
            num_heads=self.num_heads, show_keys=self.show_keys,
            class_names=None if self.classes is None else read_class_names(self.classes),
        )  # fmt: skip
        console.print(
            f"{self.out}: try srdd sample --model {self.out} --num 8 --out grid.png",
            soft_wrap=True,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Write a pipeline as VAR's two files, which VAR's own code loads strictly."""

    model: Path  # pipeline or run directory
    vae: Path  # the tokenizer's file, new: .pth, .pt or .safetensors
    transformer: Path  # the transformer's, likewise

    def run(self, console: "Console") -> None:
        """Load and write."""
        from srdd_platform.core.official_files import export

        export(self.model, vae=self.vae, transformer=self.transformer)
