"""A family of generators in few lines: it shows that the platform knows no family."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from srdd.batch import check_batch
from srdd.errors import UserError
from srdd.generator import Card, Cost, Given
from srdd.pipeline_files import read_sampler, write_sampler
from srdd.rng import uniform

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ColourSettings:
    noise: float = 0.25  # largest difference from the class's colour
    steps: int = 3  # in which the noise is added

    def active(self) -> dict[str, Any]:
        return asdict(self) if self.noise > 0 else {"noise": 0.0}


@dataclass(frozen=True, slots=True)
class ColourState:
    pixels: Tensor  # [B, 3, R, R]
    seeds_B: Tensor
    settings: ColourSettings
    step: int = 0

    @property
    def num_steps(self) -> int:
        return self.settings.steps if self.settings.noise > 0 else 1

    @property
    def codes_BL(self) -> Tensor:  # noqa: N802
        return torch.zeros(len(self), 0, dtype=torch.int64)

    @property
    def cost(self) -> Cost:
        nfe_B = torch.full((len(self),), self.step)
        return Cost(nfe_B, nfe_B * 2 * self.pixels[0].numel())

    def __len__(self) -> int:
        return len(self.seeds_B)

    def select(self, rows: Tensor) -> Self:
        return replace(self, pixels=self.pixels[rows], seeds_B=self.seeds_B[rows])

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        if len({(state.step, state.settings) for state in states}) > 1:
            raise UserError("states at one step and of the same settings are needed")
        pixels = torch.cat([state.pixels for state in states])
        return replace(states[0], pixels=pixels, seeds_B=torch.cat([s.seeds_B for s in states]))


@dataclass(frozen=True)
class Colours:
    """Each class has a colour. Each step adds noise that follows from the image's seed alone."""

    colours_K3: Tensor
    class_names: tuple[str, ...] = DIGITS
    resolution: int = 16
    sampler: ColourSettings = field(default_factory=ColourSettings)
    device = torch.device("cpu")
    dtype = torch.float32

    @property
    def card(self) -> Card:
        brightest = "red green blue".split()[int(self.colours_K3.sum(0).argmax())]
        return Card(family="colours", name=f"Colours ({brightest})", class_names=self.class_names,
                    resolution=self.resolution, tags={"tint": brightest})  # fmt: skip

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        return self

    def check_settings(self, config: ColourSettings) -> None:
        if not 1 <= config.steps <= MAX_STEPS:
            raise UserError(f"steps must be from 1 to {MAX_STEPS}, got {config.steps}",
                            field="steps")  # fmt: skip

    def begin(
        self,
        labels_B: Tensor | Sequence[int],
        config: ColourSettings,
        seeds_B: Tensor | Sequence[int],
        given: Given | None = None,
    ) -> ColourState:
        self.check_settings(config)
        labels_B, seeds_B = check_batch(labels_B, seeds_B)
        if not all(0 <= label < len(self.class_names) for label in labels_B):
            raise UserError(f"classes must lie in [0, {len(self.class_names)})")
        if given is not None:
            raise UserError("this family has no codes that could be given")
        side = self.resolution
        pixels = self.colours_K3[labels_B].view(-1, 3, 1, 1).expand(-1, -1, side, side)
        return ColourState(pixels, seeds_B, config)

    def advance(self, state: ColourState) -> ColourState:
        place_3RR = torch.arange(state.pixels[0].numel()).view(state.pixels[0].shape)
        noise = 2 * uniform(state.seeds_B.view(-1, 1, 1, 1), state.step, place_3RR).float() - 1
        pixels = state.pixels + noise * (state.settings.noise / state.num_steps)
        return replace(state, pixels=pixels, step=state.step + 1)

    def decode(self, state: ColourState) -> Tensor:
        return state.pixels.clamp(0, 1)


def make_colours(seed: int = 0) -> Colours:
    """Random colours, far enough from black and white for the noise to show."""
    return Colours(0.3 + 0.4 * torch.rand(10, 3, generator=torch.Generator().manual_seed(seed)))


def save_colours(generator: Colours, directory: Path) -> Path:
    """Write the pipeline directory, and return it."""
    (directory / "colours").mkdir(parents=True)
    save_file({"colours": generator.colours_K3}, directory / "colours" / "model.safetensors")
    write_sampler(directory, generator.sampler)
    return directory


def load_colours(source: str | Path) -> Colours:
    """What :func:`save_colours` wrote."""
    colours_K3 = load_file(Path(source) / "colours" / "model.safetensors")["colours"]
    return Colours(colours_K3, sampler=read_sampler(Path(source), ColourSettings))
