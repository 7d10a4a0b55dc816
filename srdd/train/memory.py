"""What an update needs of memory, counted on tensors that have shapes and no values.

Every tensor that is alive is counted, forward and backward, as torch's own kernels for CPU make
them: so a model that fits no memory here can be asked for. What kernels allocate inside (packed
weights, convolutions' workspaces) and the allocator's waste are not seen.
"""

import weakref
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from srdd.train.config import OptimConfig
from srdd.train.loop import split_batch
from srdd.train.task import Batch, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of a training on one device, at the moment when most is needed."""

    weights: int  # frozen ones included
    gradients: int
    moments: int  # AdamW's two of each trained weight
    average: int  # of the weights, where there is one
    helpers: int  # LPIPS, a teacher; a discriminator with its gradients and moments
    sharing: int = 0  # what workers need to train together
    activations: int  # the rest: what the backward pass needs, and what comes and goes

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def count_memory(task: Task, batch: Batch, optim: OptimConfig, step: int) -> Memory:
    """The memory of one worker's update.

    Args:
        task: made under ``torch.device("meta")``; it is used up.
        batch: the worker's share of a global batch; values do not matter.
        optim: how it is trained; ``accumulate``, ``precision`` and ``ema`` bear on it.
        step: of the schedule: a discriminator may have begun.
    """
    largest = max(split_batch(batch, optim.accumulate), key=lambda part: len(part.inputs))
    with FakeTensorMode(allow_non_fake_inputs=True), _Live() as live:
        task.module.to_empty(device="cpu")
        part = Batch(
            torch.empty_like(largest.inputs), torch.empty_like(largest.labels_b),
            torch.empty_like(largest.index_b), batch.global_size,
        )  # fmt: skip
        weights = list(task.module.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        for weight in trained:  # they stay from one update to the next
            weight.grad = torch.empty_like(weight)
        held = live.now
        live.peak = held
        half = optim.precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = task.module(part, step)
        loss.backward()
    own = sum(weight.nbytes for weight in trained)
    return Memory(
        weights=sum(weight.nbytes for weight in weights),
        gradients=own,
        moments=2 * own,
        average=own if optim.ema > 0 else 0,
        helpers=sum(
            parameter.nbytes * (4 if trains else 1)
            for module, trains in task.helpers().values()
            for parameter in module.parameters()
        ),
        activations=live.peak - held,
    )
