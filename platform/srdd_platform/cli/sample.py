"""The command ``srdd sample``."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srdd.devices import Dtype
from srdd.var.config import CfgRamp, Feedback, Resample, SamplerConfig
from srdd_platform.core.parsing import integers

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Draw images: a grid (--out grid.png), or single PNGs with a table (--out DIR)."""

    model: Path  # pipeline or run directory
    out: Path
    classes: str | None = None  # take turns: hen,3 or '"lamp, desk",index:2'; default: all
    num: int = 16  # images in all
    seed: int = 0
    device: str = "cpu"
    dtype: Dtype = "float32"
    int8: bool = False  # linears of the blocks in 8-bit integers: faster, not exact
    compile: bool = False  # torch.compile: a warm-up first, so for many images
    cuda_graph: bool = False  # the whole loop as one launch; without refinement
    batch_size: int = 64
    cfg: float | None = None  # guidance weight; this and the rest override the pipeline's
    cfg_ramp: CfgRamp | None = None
    top_k: int | None = None
    top_p: float | None = None
    epsilon: float | None = None
    refine_steps: int | None = None
    resample: Resample | None = None
    resample_threshold: float | None = None
    feedback: Feedback | None = None
    patch_nums: str | None = None  # "1,2,4": scales visited

    def run(self, console: "Console") -> None:
        """Sample and write."""
        from srdd_platform.evaluation.sample_files import Placement, write_samples

        placement = Placement(
            device=self.device, dtype=self.dtype, int8=self.int8, compiled=self.compile,
            cuda_graph=self.cuda_graph,
        )  # fmt: skip
        write_samples(
            self.model, self.out, num=self.num, seed=self.seed, classes=self.classes,
            settings=self._settings(), batch_size=self.batch_size, placement=placement,
        )  # fmt: skip

    def _settings(self) -> dict[str, Any]:
        """The sampler's settings that were given."""
        names = {field.name for field in fields(SamplerConfig)} & {f.name for f in fields(self)}
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.patch_nums is not None:
            given["patch_nums"] = integers(self.patch_nums, "patch_nums")
        return given
