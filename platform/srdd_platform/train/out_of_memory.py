"""Training that needs more memory than there is: how it is told, and what to do."""

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train

from srdd_platform.core.files import read_json, write_json
from srdd_platform.core.out_of_memory import is_out_of_memory
from srdd_platform.train.job import Job, parse_job

Worker = Callable[[dict[str, Any]], str | None]


def advice(job: Job, world: int) -> str:
    """What ran out, and what to try, in one line.

    Args:
        job: the training.
        world: how many workers shared its batch.
    """
    at_once = images_at_once(job, world)
    images = f"{at_once} image{'s' * (at_once != 1)} at once"
    tried = remedy(job, world)
    return f"out of memory with {images} in each worker: {tried}; the last checkpoint is kept"


def remedy(job: Job, world: int) -> str:
    """What makes a training take less memory: the same model where that can be."""
    size, parts = job.optim.batch_size, job.optim.accumulate
    if images_at_once(job, world) > 1:
        fewer = math.ceil(math.ceil(size / world) / (2 * parts))
        return (
            f"give --accumulate {2 * parts} ({fewer} at once, the same model) or more, or begin "
            f"with --batch-size {max(1, size // 2)} or less"
        )
    if job.kind.recomputes and not job.optim.recompute:
        return "give --recompute (blocks again in the backward pass, the same model)"
    if job.kind.sharded and job.runtime.parallel == "ddp":
        return "give --parallel fsdp and more workers, or train a smaller model"
    return "train a smaller model, or on a device with more memory"


def images_at_once(job: Job, world: int) -> int:
    """The most images whose activations a worker holds at once."""
    return math.ceil(math.ceil(job.optim.batch_size / world) / job.optim.accumulate)


def tells_of_memory(worker: Worker) -> Worker:
    """A Ray Train worker that writes ``failure.json`` where its memory runs out.

    One worker alone then ends as one that cannot go on. Of several the others may wait for it: it
    fails, and all are started again, only to find the file and end.
    """

    @functools.wraps(worker)
    def told(config: dict[str, Any]) -> str | None:
        job = parse_job(config)
        path = Path(job.run) / "failure.json"
        if path.exists():
            return str(read_json(path)["error"])
        try:
            return worker(config)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            world = ray.train.get_context().get_world_size()
            why = advice(job, world)
            with suppress(OSError):
                write_json(path, {"error": why})
            if world > 1:
                raise
            return why

    return told
