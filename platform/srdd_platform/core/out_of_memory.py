"""Which errors mean that memory ran out."""

import torch

_TEXTS = (  # of a RuntimeError: torch's CPU allocator, oneDNN's, the C++ library's
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "out of memory",
)
_KILLED = (  # in Ray's words, where its memory monitor ends a worker
    "running low on memory",
    "due to memory pressure",
    "NODE_OUT_OF_MEMORY",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was asked for which there is not, on CPU or GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def killed_for_memory(error: BaseException) -> bool:
    """Whether Ray ended a worker because its node ran out of memory.

    Where the kernel does it, nobody can tell that from another kill.
    """
    name = type(error).__name__
    return name == "OutOfMemoryError" or any(text in str(error) for text in _KILLED)
