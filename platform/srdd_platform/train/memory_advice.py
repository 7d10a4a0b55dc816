"""What makes a training fit into the memory that is free, counted before it is advised."""

import math
from dataclasses import replace

from srdd.train.memory import Memory
from srdd_platform.train.estimate import worker_memory
from srdd_platform.train.job import Job
from srdd_platform.train.out_of_memory import images_at_once

SPARE = 1.5  # free over counted memory: libraries and the kernels' own buffers come on top
_MOST_WORKERS = 64


def fits(memory: Memory, free: int) -> bool:
    """Whether a worker that needs ``memory`` by count can be expected to run in ``free`` bytes."""
    return memory.total * SPARE <= free


def advice_to_fit(job: Job, free: int) -> str:
    """The first change under which a worker fits into ``free`` bytes, as the option to give.

    Changes that leave the model the same come first. Each is counted with the change made.
    """
    parts = parts_that_fit(job, free)
    if parts is not None:
        at_once = images_at_once(_in_parts(job, parts), job.runtime.fewest)
        return f"give --accumulate {parts} ({at_once} at once, the same model)"
    if not job.kind.recomputes:
        return "train a smaller model, or on a device with more memory"
    again = job.with_optim(recompute=True)
    parts = parts_that_fit(again, free)
    if parts is not None:
        more = f" --accumulate {parts}" if parts > 1 else ""
        return f"give --recompute{more} (blocks again in the backward pass, the same model)"
    workers = _workers_that_fit(again, free) if job.kind.sharded else None
    if workers is not None:
        one_each = math.ceil(job.optim.batch_size / workers)
        more = f" --accumulate {one_each}" if one_each > 1 else ""
        return (
            f"give --parallel fsdp --workers {workers} --recompute{more} (each worker on a device "
            "of its own, the same model)"
        )
    return "train a smaller model, or on a device with more memory"


def parts_that_fit(job: Job, free: int) -> int | None:
    """The fewest parts of a worker's batch with which it fits, or None where one image does not."""
    share = images_at_once(_in_parts(job, 1), job.runtime.fewest)
    parts = job.optim.accumulate
    while True:
        memory = worker_memory(_in_parts(job, parts))
        if fits(memory, free):
            return parts
        at_once = math.ceil(share / parts)
        left = free / SPARE - (memory.total - memory.activations)
        fewer = min(at_once - 1, int(at_once * left / memory.activations))
        if at_once == 1 or left <= 0:
            return None
        parts = math.ceil(share / max(1, fewer))


def _workers_that_fit(job: Job, free: int) -> int | None:
    workers = max(2, job.runtime.fewest)
    while workers <= _MOST_WORKERS:
        runtime = replace(job.runtime, parallel="fsdp", workers=workers, min_workers=0)
        sharded = replace(job, runtime=runtime)
        size = job.optim.batch_size
        if fits(worker_memory(_in_parts(sharded, math.ceil(size / workers))), free):
            return workers
        workers *= 2
    return None


def _in_parts(job: Job, parts: int) -> Job:
    return job.with_optim(accumulate=parts)
