"""What a training takes: parameters, memory and time, counted or measured before it starts.

Parameters and memory are counted on tensors without values, so a model may be asked for that this
machine could not hold. Time is measured with a few updates on random images or codes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import psutil
import torch

from srdd.train.loop import Log, fit
from srdd.train.memory import Memory, count_memory
from srdd.train.task import Batch, Task
from srdd_platform.train.job import Job
from srdd_platform.train.monitor import Meter

UPDATES = 2  # measured, after a first one


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How fast some updates of one worker were."""

    images: int  # in each
    images_per_s: float


def worker_share(job: Job) -> int:
    """The most images of a global batch that a worker has: with the fewest workers."""
    return math.ceil(job.optim.batch_size / job.runtime.fewest)


def parameter_counts(task: Task) -> dict[str, tuple[int, int]]:
    """Numbers of trained and of frozen parameters by part; a loss's helpers are parts."""
    counts: dict[str, tuple[int, int]] = {}

    def add(part: str, number: int, trained: bool) -> None:
        before, still = counts.get(part, (0, 0))
        counts[part] = (before + number * trained, still + number * (not trained))

    for name, weight in task.module.named_parameters():
        part = name.split(".")[:2][-1]  # after "model", "tokenizer" or the like
        add(part, weight.numel(), weight.requires_grad)
    for name, (module, trains) in task.helpers().items():
        add(name, sum(weight.numel() for weight in module.parameters()), trains)
    return counts


def worker_memory(job: Job) -> Memory:
    """Bytes of the worker that needs most, when it needs most: a discriminator has begun."""
    job = _costliest(job).with_optim(compile=False)  # what that saves is not counted
    task, workers = job.blank_task(), job.runtime.fewest
    units = [sum(weight.nbytes for weight in unit.parameters()) for unit in task.shard_units()]
    batch = task.random_batch(worker_share(job), job.optim.batch_size)
    memory = count_memory(task, batch, job.optim, job.steps)
    if workers == 1:
        return memory
    if job.runtime.parallel == "ddp":  # its buckets are a copy of the gradients
        return replace(memory, sharing=memory.gradients)
    split = ("weights", "gradients", "moments", "average")
    parts = {name: math.ceil(getattr(memory, name) / workers) for name in split}
    return replace(memory, **parts, sharing=2 * max(units))  # one whole, and its gradients


def measure(job: Job, images: int) -> Pace:
    """Run a few updates of one worker on the job's device, without data and without Ray.

    Args:
        job: the training.
        images: in each update.
    """
    job = _costliest(job)
    short = replace(
        job.optim, steps=1 + UPDATES, batch_size=images, nonfinite_steps=1 + UPDATES,
        accumulate=min(job.optim.accumulate, images),
    )  # fmt: skip
    device = torch.device(job.runtime.device)
    with torch.random.fork_rng(devices=[]):
        task = job.build_task()
    task.module.to(device)
    inputs = task.random_batch(images, images)
    meter, found = Meter(images), []

    def batches(step: int) -> Iterator[Batch]:
        while True:
            yield Batch(
                inputs.inputs.to(device), inputs.labels_b.to(device), inputs.index_b.to(device),
                images,
            )  # fmt: skip

    def read(step: int, metrics: dict[str, float]) -> None:
        found.append(meter.read()["images_per_s"])

    log = Log(write=read, every=short.steps)
    fit(task, short, lambda step: meter.stream(batches(step)), log=log)
    return Pace(images=images, images_per_s=found[0])


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device has free now; None where there is no such device."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return None
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _costliest(job: Job) -> Job:
    """The job as it is at its dearest: a discriminator trains from the first update on."""
    return replace(job, settings=job.kind.costliest(job.settings))
