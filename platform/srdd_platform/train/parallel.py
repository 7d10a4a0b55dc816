"""How workers share a training: each has the whole model (DDP), or a shard of it (FSDP2).

Both train the same model, and their checkpoints hold whole tensors: a run may go on with the other
one, and with another number of workers. Needs a process group, no Ray.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from srdd.train.task import Task
from srdd.train.workers import Reduce
from srdd_platform.train.options import Parallel


class Workers(Reduce):
    """Workers that have the whole model each; gradients meet after the backward pass."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        self.world = world

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over workers."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def place(self, task: Task, device: torch.device) -> None:
        """Move a fresh task to where it is trained."""
        task.module.to(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over workers."""
        if self.world == 1:
            return module
        return DistributedDataParallel(module, broadcast_buffers=False)

    def assembled(self, task: Task) -> Task:
        """The task with whole weights on the first worker; every worker calls it."""
        return task


class Shards(Workers):
    """Workers that have a shard of each weight, of its gradient, average and moments.

    The units are the task's (a block of a transformer), and what is left is one more: only the
    weights of the unit at work lie whole on a device. Weights, sums of gradients and the optimizer
    stay in float32. With products in bfloat16 the units' weights travel in it, as autocast would
    round them (the lengths of queries too, which autocast leaves); embeddings and head stay in
    float32.

    Args:
        rank: this worker's.
        world: workers in all.
        device: where the shards lie.
        half: products are in bfloat16.
    """

    def __init__(self, rank: int, world: int, device: torch.device, *, half: bool) -> None:
        super().__init__(rank, world)
        self.device = device
        self.half = half
        self._units: Sequence[nn.Module] = ()
        self._replicated: nn.Module | None = None

    def place(self, task: Task, device: torch.device) -> None:
        """What each worker keeps whole, alone: a large model need not fit a device."""
        self._units, self._replicated = task.shard_units(), task.replicated()
        if self._replicated is not None:
            self._replicated.to(device)  # so the device is in use before workers meet on it

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its weights sharded, in place; the unit being cut is on the device."""
        mesh = init_device_mesh(self.device.type, (self.world,))
        policy = MixedPrecisionPolicy()
        if self.half:
            policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        for unit in self._units:
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        whole = set() if self._replicated is None else set(self._replicated.parameters())
        fully_shard(module, mesh=mesh, ignored_params=whole)
        module.to(self.device)  # what is not sharded, as a teacher
        return _Sharded(module)

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a sharded tensor."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def part(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This worker's shard; every worker has the whole tensor, so none is sent."""
        if not isinstance(like, DTensor):
            return tensor
        there = tensor.to(like.device)
        shard = distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
        return shard.clone()  # a view would keep the whole tensor

    def gather(self, state: dict[str, Any]) -> dict[str, Any]:
        """Whole tensors, in the first worker's memory alone."""

        def whole(tensor: DTensor) -> Tensor:
            found = tensor.full_tensor()
            return found.cpu() if self.rank == 0 else found.new_empty(0)

        gathered: dict[str, Any] = tree_map_only(DTensor, whole, state)
        return gathered

    def assembled(self, task: Task) -> Task:
        """On the first worker a copy of the task whose model has whole weights."""
        state = self.gather(task.module.state_dict())
        return task.with_weights(state, self.device) if self.rank == 0 else task


class _Sharded(nn.Module):
    """A sharded module, with what DDP has beside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        """As the module's."""
        return self.module(*args)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, gradients add up on each worker, whole."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)


def make_workers(
    parallel: Parallel, rank: int, world: int, device: torch.device, *, half: bool
) -> Workers:
    """This worker's view of all; one alone has nothing to shard."""
    if parallel == "ddp" or world == 1:
        return Workers(rank, world)
    return Shards(rank, world, device, half=half)
