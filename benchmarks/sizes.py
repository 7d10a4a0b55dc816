"""The models that the benchmarks build: VAR's own shapes, a small one and a tiny one."""

from dataclasses import dataclass

from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.masks import Mask

_VAR_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A model by its depth, as in VAR: width 64 a layer, heads of 64, a tokenizer of factor 16."""

    name: str
    depth: int
    patch_nums: tuple[int, ...] = _VAR_256
    ch: int = 160  # width of the tokenizer's first level
    vocab_size: int = 4096
    num_classes: int = 1000
    top_k: int = 900
    batch: int = 1  # of a run that names none
    pruned: tuple[tuple[int, ...], ...] = ((1, 3, 5, 8, 13, 16), (1, 5, 8, 13, 16))

    @property
    def resolution(self) -> int:
        """Pixels a side."""
        return 16 * self.patch_nums[-1]

    def tokenizer(self) -> TokenizerConfig:
        """The tokenizer's settings."""
        return TokenizerConfig(
            resolution=self.resolution,
            patch_nums=self.patch_nums,
            ch=self.ch,
            vocab_size=self.vocab_size,
        )

    def transformer(self, mask: Mask) -> TransformerConfig:
        """The transformer's settings."""
        return TransformerConfig(
            patch_nums=self.patch_nums,
            mask=mask,
            num_classes=self.num_classes,
            depth=self.depth,
            width=64 * self.depth,
            num_heads=self.depth,
            vocab_size=self.vocab_size,
        )


SIZES = {
    size.name: size
    for size in (
        Size(name="tiny", depth=2, patch_nums=(1, 2, 3, 4), ch=32, vocab_size=64, num_classes=10,
             top_k=48, batch=2, pruned=((1, 2, 4),)),
        Size(name="small", depth=8, patch_nums=(1, 2, 3, 4, 6, 8), ch=96, batch=4,
             pruned=((1, 2, 4, 8), (1, 4, 8))),
        Size(name="d8", depth=8, ch=96, batch=2),
        Size(name="d16", depth=16),
        Size(name="d20", depth=20),
        Size(name="d24", depth=24),
        Size(name="d30", depth=30),
    )
}  # fmt: skip
