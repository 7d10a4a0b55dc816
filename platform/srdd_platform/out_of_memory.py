"""Training that needs more memory than there is: how it is told, and what to do."""

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
import torch

from srdd_platform.files import write_json
from srdd_platform.jobs import Job
from srdd_platform.runs import failure

Worker = Callable[[dict[str, Any]], str | None]

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


def advice(job: Job, world: int) -> str:
    """What ran out, and what to try, in one line.

    Args:
        job: the training.
        world: how many workers shared its batch.
    """
    optim = job.settings["optim"]
    size, parts = int(optim["batch_size"]), int(optim["accumulate"])
    share = math.ceil(size / world)
    at_once = math.ceil(share / parts)
    images = f"{at_once} image{'s' * (at_once != 1)} at once"
    told = f"out of memory with {images} in each worker"
    if at_once > 1:
        fewer = math.ceil(share / (2 * parts))
        told += (
            f": go on with --accumulate {2 * parts} ({fewer} at once, the same model), or begin "
            f"anew with --batch-size {max(1, size // 2)} or less"
        )
    elif job.kind == "transformer" and not optim["recompute"]:
        told += ": go on with --recompute (blocks again in the backward pass, the same model)"
    elif job.kind == "transformer" and job.parallel == "ddp":
        told += ": go on with --parallel fsdp and more workers, or train a smaller model"
    else:
        told += ": train a smaller model, or on a device with more memory"
    return f"{told}; the last checkpoint is kept"


def tells_of_memory(worker: Worker) -> Worker:
    """A Ray Train worker that writes ``failure.json`` where its memory runs out.

    One worker alone then ends as one that cannot go on. Of several the others may wait for it: it
    fails, and all are started again, only to find the file and end.
    """

    @functools.wraps(worker)
    def told(config: dict[str, Any]) -> str | None:
        job = Job(**config)
        if why := failure(Path(job.run)):
            return why
        try:
            return worker(config)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            world = ray.train.get_context().get_world_size()
            why = advice(job, world)
            with suppress(OSError):
                write_json(Path(job.run) / "failure.json", {"error": why})
            if world > 1:
                raise
            return why

    return told
