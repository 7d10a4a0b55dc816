"""What every family of generators offers, and the sampling loop written once on it.

A generator makes images in steps: a scale of VAR, a group of tokens, a denoising step.
:func:`sample` runs all steps, :func:`sample_stream` shows each one. The evaluator, the server and
the sweeps know a model by :class:`Generator` and :class:`State` alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from srdd.rng import image_seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a generator is."""

    family: str  # "var" of the scale-wise ones; messages name it
    name: str  # for tables and figures, e.g. "SDD (markov)"
    class_names: tuple[str, ...]  # in label order
    resolution: int  # pixels a side
    unconditional: bool = False  # it has one class, and no guidance
    tags: Mapping[str, str] = field(default_factory=dict)  # columns of a row: {"mask": "markov"}
    defaults: Mapping[str, Any] = field(default_factory=dict)  # what a setting of None stands for


class Settings(Protocol):
    """The sampler's settings of a family: a frozen dataclass with a default for each field.

    Each field can be swept.
    """

    def active(self) -> dict[str, Any]:
        """The settings that bear on the result.

        Two settings with equal active ones make the same images from the same seeds.
        """


@dataclass(frozen=True, slots=True)
class Given:
    """Codes known before sampling starts, for editing and for "start from my codes".

    They may be fewer than an image has: those after them are drawn.
    """

    codes_BL: Tensor  # int64; a value does not matter where ``keep_BL`` is False
    keep_BL: Tensor  # bool: True keeps the code given, False draws it

    @classmethod
    def prefix(cls, codes_Bl: Tensor) -> Self:
        """The first codes of each image, all of them kept: int64 [B, l]."""
        return cls(codes_Bl, torch.ones_like(codes_Bl, dtype=torch.bool))


@dataclass(frozen=True, slots=True)
class Cost:
    """What the images of a batch cost so far, the decoding of the finished image included."""

    nfe_B: Tensor  # int64 on the CPU: network evaluations; guidance's second half counts
    flops_B: Tensor  # int64 on the CPU


class State(Protocol):
    """Images between two steps. A row is one image, whatever stands beside it."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def num_steps(self) -> int:
        """Steps in all."""

    @property
    def codes_BL(self) -> Tensor:  # noqa: N802
        """The codes drawn so far, int64; of width 0 in a family without codes."""

    @property
    def cost(self) -> Cost:
        """What the images cost so far."""

    def __len__(self) -> int:
        """Images."""

    def select(self, rows: Tensor) -> Self:
        """Some rows, by index or mask."""

    @classmethod
    def join(cls, states: Sequence[Self]) -> Self:
        """One batch of states at the same step of the same settings.

        Raises:
            UserError: they cannot be one batch.
        """


S = TypeVar("S", bound=State)


class Generator(Protocol[S]):
    """A trained model that makes images."""

    @property
    def card(self) -> Card:
        """What the model is."""

    @property
    def sampler(self) -> Any:
        """The model's own settings, a :class:`Settings`."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, apart from sums that need float32."""

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Move to a device, and to a dtype; returns self."""

    def check_settings(self, config: Any) -> None:
        """Refuse settings that do not fit the model.

        Raises:
            UserError: a setting does not fit; it is named.
        """

    def begin(
        self,
        labels_B: Tensor | Sequence[int],
        config: Any,
        seeds_B: Tensor | Sequence[int],
        given: Given | None = None,
    ) -> S:
        """The state before the first step.

        Args:
            labels_B: a class an image.
            config: the settings, as :attr:`sampler`.
            seeds_B: a seed an image.
            given: codes that are known already; they are in the result as they are.

        Raises:
            UserError: a class, a seed count, a setting or a code does not fit the model.
        """

    def advance(self, state: S) -> S:
        """Do one step. A state is advanced once."""

    def decode(self, state: S) -> Tensor:
        """The images at any step: [B, 3, R, R] in [0, 1].

        Raises:
            FloatingPointError: the network gave values that are not finite.
        """


@runtime_checkable
class Capturable(Generator[S], Protocol[S]):
    """What a generator may be able to do: run as a CUDA graph (:mod:`srdd.graph`).

    Begin is then :meth:`check_request` and :meth:`start`, decode is :meth:`check_finite` and
    :meth:`pixels`; nothing but the checks waits for the device.
    """

    def check_capture(self, config: Any) -> None:
        """Refuse settings under which the number of evaluations depends on what is drawn.

        Raises:
            UserError: the setting is named.
        """

    def check_request(
        self, labels_B: Tensor | Sequence[int], config: Any, seeds_B: Tensor | Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Labels and seeds as int64 [B].

        Raises:
            UserError: a class, a seed count or a setting does not fit the model.
        """

    def start(self, labels_B: Tensor, config: Any, seeds_B: Tensor) -> S:
        """The state before the first step, of labels and seeds on the device that fit."""

    def check_finite(self, state: S) -> None:
        """Refuse a state of which a value is not finite.

        Raises:
            FloatingPointError: the network gave values that are not finite.
        """

    def pixels(self, state: S) -> Tensor:
        """The images at any step, unchecked: [B, 3, R, R] in [0, 1]."""


@runtime_checkable
class Reconstructs(Protocol):
    """What a generator may be able to do: show what its codes keep of an image."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode a batch: uint8 [n, 3, R, R] -> uint8, on the generator's device.

        Raises:
            UserError: the images have another size.
        """


@runtime_checkable
class HasUntrained(Protocol):
    """What a generator may be able to do: stand beside its own beginning."""

    def untrained(self, seed: int = 0) -> Generator[Any]:
        """The same generator with weights that were never trained, equal for equal seeds."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A step just done: what it decodes to so far."""

    step: int  # counts from 0
    images: Tensor  # [B, 3, R, R] in [0, 1]
    codes_Bl: Tensor  # int64, of this step

    @property
    def scale(self) -> int:
        """The step of a scale-wise model: an index among the scales visited."""
        return self.step


@dataclass(frozen=True, slots=True)
class SampleResult:
    """Finished images and what they cost."""

    images: Tensor  # [B, 3, R, R] in [0, 1]
    codes_BL: Tensor  # int64
    nfe: Tensor  # int64 [B]
    gflops: Tensor  # float64 [B], decoder included


def result_of(state: State, images: Tensor) -> SampleResult:
    """A finished state with its images."""
    cost = state.cost
    return SampleResult(images, state.codes_BL, cost.nfe_B, cost.flops_B.double() / 1e9)


def sample_stream(
    pipeline: Generator[S],
    labels_B: Tensor | Sequence[int],
    config: Any,
    seeds_B: Tensor | Sequence[int],
    given: Given | None = None,
) -> Iterator[Preview]:
    """Make images and show each step as it is done: one :class:`Preview` a step.

    Args and errors are those of :func:`sample`.
    """
    config = pipeline.sampler if config is None else config
    state = pipeline.begin(labels_B, config, seeds_B, given)
    while state.step < state.num_steps:
        done = state.codes_BL.shape[1]
        state = pipeline.advance(state)
        yield Preview(state.step - 1, pipeline.decode(state), state.codes_BL[:, done:])


def sample(
    pipeline: Generator[S],
    labels_B: Tensor | Sequence[int],
    config: Any = None,
    seeds_B: Tensor | Sequence[int] | None = None,
    given: Given | None = None,
) -> SampleResult:
    """Make an image for each label.

    An image depends on its label, its seed and the settings alone, and on the codes given.

    Args:
        pipeline: the model.
        labels_B: a class an image.
        config: the settings; None takes the model's own.
        seeds_B: a seed an image; None takes those of job 0.
        given: codes that are known already.

    Raises:
        UserError: labels, seeds, settings or codes do not fit the model.
        FloatingPointError: the network gave values that are not finite.
    """
    config = pipeline.sampler if config is None else config
    seeds_B = image_seeds(0, 0, len(labels_B)) if seeds_B is None else seeds_B
    state = pipeline.begin(labels_B, config, seeds_B, given)
    while state.step < state.num_steps:
        state = pipeline.advance(state)
    return result_of(state, pipeline.decode(state))
