"""What a training takes: parameters, memory and time, counted or measured before it starts.

Parameters and memory are counted on tensors without values, so a model may be asked for that this
machine could not hold. Time is measured with a few updates on random images or codes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor

from srdd.train.config import OptimConfig
from srdd.train.loop import Batch, Task, fit
from srdd.train.memory import Memory, count_memory, helpers
from srdd.train.var.transformer import TransformerTask
from srdd.validation import from_dict
from srdd_platform.train.job import Job
from srdd_platform.train.monitor import Meter
from srdd_platform.train.tasks import blank_task, build_task

UPDATES = 2  # measured, after a first one


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How fast some updates of one worker were."""

    images: int  # in each
    images_per_s: float


def worker_share(job: Job) -> int:
    """The most images of a global batch that a worker has: with the fewest workers."""
    return math.ceil(int(job.settings["optim"]["batch_size"]) / job.fewest)


def parameter_counts(task: Task) -> dict[str, tuple[int, int]]:
    """Numbers of trained and of frozen parameters by part; a loss's helpers are parts."""
    counts: dict[str, tuple[int, int]] = {}

    def add(part: str, number: int, trained: bool) -> None:
        before, still = counts.get(part, (0, 0))
        counts[part] = (before + number * trained, still + number * (not trained))

    for name, weight in task.module.named_parameters():
        part = name.split(".")[1]  # after "model", "tokenizer" or "classifier"
        add(part, weight.numel(), weight.requires_grad)
    for name, (module, trains) in helpers(task).items():
        add(name, sum(weight.numel() for weight in module.parameters()), trains)
    return counts


def worker_memory(job: Job) -> Memory:
    """Bytes of the worker that needs most, when it needs most: a discriminator has begun."""
    job = changed(_costliest(job), "optim", compile=False)  # what that saves is not counted
    optim = from_dict(OptimConfig, job.settings["optim"], "optim")
    task = blank_task(job)
    memory = count_memory(task, _inputs(job, task, worker_share(job)), optim, job.steps)
    if job.fewest == 1:
        return memory
    if job.parallel == "ddp":  # its buckets are a copy of the gradients
        return replace(memory, sharing=memory.gradients)
    assert isinstance(task, TransformerTask)
    unit = sum(weight.nbytes for weight in task.model.layers[0].parameters())
    split = ("weights", "gradients", "moments", "average")
    parts = {name: math.ceil(getattr(memory, name) / job.fewest) for name in split}
    return replace(memory, **parts, sharing=2 * unit)  # one block whole, and its gradients


def measure(job: Job, images: int) -> Pace:
    """Run a few updates of one worker on the job's device, without data and without Ray.

    Args:
        job: the training.
        images: in each update.
    """
    job = _costliest(job)
    optim = from_dict(OptimConfig, job.settings["optim"], "optim")
    short = replace(
        optim, steps=1 + UPDATES, batch_size=images, nonfinite_steps=1 + UPDATES,
        accumulate=min(optim.accumulate, images),
    )  # fmt: skip
    device = torch.device(job.device)
    with torch.random.fork_rng(devices=[]):
        task = build_task(job)
    task.module.to(device)
    inputs = _inputs(job, task, images)
    meter, found = Meter(images), []

    def batches(step: int) -> Iterator[Batch]:
        while True:
            yield Batch(
                inputs.inputs.to(device), inputs.labels_b.to(device), inputs.index_b.to(device),
                images,
            )  # fmt: skip

    fit(
        task, short, lambda step: meter.stream(batches(step)), log_every=short.steps,
        on_log=lambda step, metrics: found.append(meter.read()["images_per_s"]),
    )  # fmt: skip
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
    has_one = "gan_start" in job.settings.get("loss", {})
    return changed(job, "loss", gan_start=0.0) if has_one else job


def changed(job: Job, part: str, **values: Any) -> Job:
    """The job with other values in one part of its settings."""
    return replace(job, settings={**job.settings, part: {**job.settings[part], **values}})


def _inputs(job: Job, task: Task, images: int) -> Batch:
    """A share of a global batch: random images or codes."""
    generator = torch.Generator().manual_seed(0)
    inputs: Tensor
    if isinstance(task, TransformerTask):
        config = task.model.config
        shape = (images, config.schedule.length)
        inputs = torch.randint(config.vocab_size, shape, generator=generator)
    else:
        side = int(job.settings["model"]["resolution"])
        square = (images, 3, side, side)
        inputs = torch.randint(256, square, generator=generator, dtype=torch.uint8)
    labels_b = torch.zeros(images, dtype=torch.int64)
    size = int(job.settings["optim"]["batch_size"])
    return Batch(inputs, labels_b, torch.arange(images), size)
