"""Peak memory of one call: what it allocates beyond the weights.

On CUDA the allocator's own count. On a CPU the storages that live at once, followed through every
operator: exact and repeatable, but blind to what a kernel takes and frees inside one operator.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measure import Call

METHOD = {
    "cuda": "torch.cuda.max_memory_allocated, less what was allocated before the call",
    "cpu": "live storages over all operators; a kernel's own workspace is not seen",
}


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most that a call holds at once beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = call()  # its result counts, as it does for who calls
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del kept
        return int(peak)
    live = LiveBytes()
    with live:
        kept = call()
    del kept
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operators made and nothing has freed yet."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}  # by the storage's address; 0: it was there before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and follow its results."""
        for tensor in _tensors((args, kwargs or {})):
            self._see(tensor, made=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._see(tensor, made=True)
        self.peak = max(self.peak, self.live)
        return result

    def _see(self, tensor: Tensor, made: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if made else 0
        self.live += self._sizes[key]
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    return storage_bytes(tensors)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, shared ones once."""
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
