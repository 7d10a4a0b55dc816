"""What the workers of one training exchange."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


class Reduce(Protocol):
    """What several workers must agree on; one worker agrees with itself.

    Every worker calls each method. As they stand here, every worker has all weights whole.
    """

    rank: int
    world: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over workers; the tensor itself where there is one worker."""
        ...

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its forward and backward distributed over the workers.

        It may lay out the weights over the workers, in place. What it returns may have a context
        ``no_sync``, inside which workers' gradients do not meet.
        """
        return module

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of which each worker has a part, as one."""
        return tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This worker's part of a whole tensor, laid out as ``like`` is."""
        return tensor

    def gather(self, state: dict[str, Any]) -> dict[str, Any]:
        """A nested state with whole tensors; the first worker alone needs to have it."""
        return state


@dataclass(slots=True)
class Alone(Reduce):
    """One worker."""

    rank: int = 0
    world: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


ALONE = Alone()
