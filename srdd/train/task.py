"""What a training trains: a model with its loss, and all that a kind of training answers for.

:func:`srdd.train.loop.fit` needs a :class:`Trainable`. A launcher asks more of a :class:`Task`:
what an update costs, what the held-out data say of the model, how it looks, and its files.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from srdd.train.workers import Reduce


class Batch(NamedTuple):
    """One worker's share of a global batch."""

    inputs: Tensor  # images uint8 [b, 3, R, R], or codes int64 [b, L]
    labels_b: Tensor  # int64
    index_b: Tensor  # int64, the samples' numbers in the data set: keys of random choices
    global_size: int  # samples of all workers


class Trainable:
    """A module with its loss, and its upkeep between updates: by default there is none."""

    module: nn.Module  # ``module(batch, step)`` gives the loss and metrics of a batch's share

    def after_step(self, batch: Batch, step: int, reduce: Reduce) -> None:
        """Upkeep after an update, the same on every worker."""

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """More to log, over all workers."""
        return {}

    def state_dict(self, reduce: Reduce) -> dict[str, Any]:
        """State beyond module and optimizer, the same on every worker; it may be nested."""
        return {}

    def load_state_dict(self, state: dict[str, Any], reduce: Reduce) -> None:
        """Undo :meth:`state_dict`, with any number of workers."""


class Helper(NamedTuple):
    """A module that the loss uses and that is not part of the model."""

    module: nn.Module
    trained: bool  # it has gradients and an optimizer of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Data that a model was not trained on."""

    inputs: Tensor  # as :attr:`Batch.inputs`; codes may be uint16
    labels_n: Tensor  # int64
    frechet: Callable[[Tensor, Tensor], float] | None = None  # of two sets of uint8 images


class Task(Trainable, ABC):
    """A training of one kind. Its module moves between devices, and the rest follows it."""

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.module.parameters()).device

    @abstractmethod
    def flops(self, step: int) -> int:
        """Floating-point operations of one image in update ``step``, forward and backward.

        They are twice the multiply-adds of products and convolutions that the model needs; blocks
        that are computed again to save memory count once.
        """

    @abstractmethod
    def random_batch(self, num: int, global_size: int) -> Batch:
        """Random samples of the shape trained on, on the CPU; for measuring time and memory."""

    @abstractmethod
    def validate(self, held_out: HeldOut) -> dict[str, float]:
        """What the model reaches on held-out data: ``n``, the images, and its metrics.

        It is called in eval mode and without gradients.
        """

    @abstractmethod
    def export(self, directory: Path, class_names: Sequence[str]) -> None:
        """Write the finished model into an empty directory.

        Args:
            directory: of the model or pipeline.
            class_names: of the data, in label order.
        """

    def helpers(self) -> dict[str, Helper]:
        """The modules that the loss uses beside the model, by name."""
        return {}

    def prepare(self, images: Callable[[int], Tensor]) -> None:
        """Make the fresh model ready for its first update.

        Args:
            images: reads so many images of the train split: uint8 [n, 3, R, R].
        """

    def baseline(self, inputs: Callable[[], Tensor]) -> dict[str, float]:
        """What a model reaches that has learnt nothing but the data's frequencies.

        Args:
            inputs: reads the train split, one view of each sample.
        """
        return {}

    def preview(self, images: Callable[[int], Tensor]) -> Tensor | None:
        """Images that show how far the model is: uint8, rows of ``COLUMNS``; None: it has none.

        It is called in eval mode and without gradients.

        Args:
            images: reads so many held-out images, spread over the split: uint8 [n, 3, R, R]. Of a
                smaller split it reads all.
        """
        return None

    def shard_units(self) -> Sequence[nn.Module]:
        """The parts of the module that are sharded one by one; none: it cannot be sharded."""
        return ()

    def replicated(self) -> nn.Module | None:
        """The frozen part of a sharded module that each worker keeps whole."""
        return None

    def with_weights(self, state: dict[str, Tensor], device: torch.device) -> Self:
        """A copy of a task that was sharded, with a whole module of these weights."""
        raise NotImplementedError(f"{type(self).__name__} cannot be sharded")


def random_images(num: int, resolution: int, global_size: int) -> Batch:
    """A batch of random images, all of the first class."""
    generator = torch.Generator().manual_seed(0)
    shape = (num, 3, resolution, resolution)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return Batch(images, torch.zeros(num, dtype=torch.int64), torch.arange(num), global_size)
