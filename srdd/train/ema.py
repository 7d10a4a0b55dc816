"""An exponential moving average of the weights, kept beside those that are trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """shadow <- decay * shadow + (1 - decay) * weight, after every update, from the first weights.

    Only trained parameters are averaged: buffers and frozen parameters (the transformer's copy of
    codebook and phi) are used as they are. A decay of 0 keeps nothing.

    Args:
        module: whose weights are averaged, on its device.
        decay: it averages over about 1 / (1 - decay) updates.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._weights = trained if decay > 0 else {}
        self.shadow = {name: p.detach().clone() for name, p in self._weights.items()}
        names = {id(p): name for name, p in self._weights.items()}
        tables = [m.weight for m in module.modules() if isinstance(m, nn.Embedding)]
        self._tables = [names[id(weight)] for weight in tables if id(weight) in names]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an update."""
        if self.shadow:
            own = [weight.detach() for weight in self._weights.values()]
            torch._foreach_lerp_(list(self.shadow.values()), own, 1 - self.decay)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Rows of embeddings replaced inside (restarted codes) replace their averages too.

        An average of a dead code and its successor would stand for neither.
        """
        before = {name: self._weights[name].detach().clone() for name in self._tables}
        yield
        for name, old in before.items():
            new = self._weights[name].detach()
            replaced = (new != old).any(1, keepdim=True)
            self.shadow[name].copy_(torch.where(replaced, new, self.shadow[name]))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the averages inside, and its own weights afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:  # in place: weights that lie in shards have their own views of it
        for name, weight in self._weights.items():
            own = weight.detach().clone()
            weight.copy_(self.shadow[name])
            self.shadow[name].copy_(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name; empty where there is none."""
        return self.shadow

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Undo :meth:`state_dict`."""
        if state.keys() != self.shadow.keys():
            raise ValueError("the averages are those of another module")
        for name, tensor in state.items():
            self.shadow[name].copy_(tensor)


def finished_weights(state: dict[str, Any]) -> dict[str, Tensor]:
    """The module's state that a finished model takes from a checkpoint: averages where kept."""
    return {**state["module"], **state["ema"]}
