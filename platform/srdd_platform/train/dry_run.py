"""``srdd train ... --dry-run``: what a training would be, take and cost. It writes nothing."""

import json
from dataclasses import fields
from datetime import timedelta

import torch

from srdd.train.memory import Memory
from srdd_platform.train.device_flops import Peak, device_peak
from srdd_platform.train.estimate import (
    UPDATES,
    free_memory,
    measure,
    parameter_counts,
    worker_memory,
    worker_share,
)
from srdd_platform.train.job import Job
from srdd_platform.train.memory_advice import SPARE, advice_to_fit, fits
from srdd_platform.train.out_of_memory import images_at_once

SECONDS = 30.0  # that the measured updates may take, by the guess that they reach FAIR of the peak
FAIR = 0.2


def dry_run(job: Job) -> str:
    """What a training would do, in lines. Neither its run directory nor Ray is touched."""
    settings, runtime = job.config
    config = {"kind": job.kind.name, "settings": settings, "runtime": runtime}
    text = [json.dumps(config, indent=1), *_data(job), *_parameters(job)]
    memory = worker_memory(job)
    text += [*_memory(job, memory), *_time(job, memory), f"Nothing was written to {job.run}."]
    return "\n".join(text)


def _data(job: Job) -> list[str]:
    num = job.store().manifest.splits["train"].num
    num -= sum(job.settings.skipped.get("train", {}).values())
    size = job.optim.batch_size
    epochs = job.steps * size / num
    return [f"Data: {num:,} images; {job.steps:,} updates of {size} are {epochs:.3g} epochs"]


def _parameters(job: Job) -> list[str]:
    counts = parameter_counts(job.blank_task())
    trained, frozen = (sum(count[i] for count in counts.values()) for i in (0, 1))
    rows = [*counts.items(), ("in all", (trained, frozen))]
    lines = [f"  {name:<18}{own:>15,}{fixed:>15,}" for name, (own, fixed) in rows]
    return [f"{'Parameters':<20}{'trained':>15}{'frozen':>15}", *lines]


def _memory(job: Job, memory: Memory) -> list[str]:
    at_once = f"{images_at_once(job, job.runtime.fewest)} images at once"
    parts = {field.name: getattr(memory, field.name) for field in fields(memory)}
    lines = [
        f"Memory of each worker, counted, with {at_once}: {_size(memory.total)}",
        *(f"  {name:<18}{_size(value):>15}" for name, value in parts.items() if value),
        "  On top come the libraries, and the kernels' own buffers.",
    ]
    free = free_memory(torch.device(job.runtime.device))
    if free is not None and not fits(memory, free):
        lines.append(
            f"  Free here: {_size(free)}, and {SPARE:g} times the count should be: "
            f"{advice_to_fit(job, free)}."
        )
    return lines


def _time(job: Job, memory: Memory) -> list[str]:
    device = torch.device(job.runtime.device)
    size = job.optim.batch_size
    flops = job.blank_task().flops(job.steps)
    lines = [f"Time: {flops / 1e9:.4g} GFLOPs an image, {flops * size / 1e12:.4g} TFLOPs an update"]
    if device.type == "cuda" and not torch.cuda.is_available():
        return [*lines, "  No estimate: torch finds no CUDA device here."]
    torch.set_num_threads(job.runtime.threads)
    peak = device_peak(device, job.optim.precision)
    if peak is not None:
        least = job.steps * size * flops / (peak.flops * job.runtime.workers)
        lines += [
            f"  peak of a worker: {peak.flops / 1e12:.3g} TFLOPS ({peak.source})",
            f"  at the peak: {_duration(least)}, less than it can take",
        ]
    images = _affordable(job, memory, flops, peak, free_memory(device))
    if images == 0:
        return [*lines, "  No estimate: one image's updates fit neither memory nor half a minute."]
    pace = measure(job, images)
    share = "" if peak is None else f", MFU {pace.images_per_s * flops / peak.flops:.1%}"
    total = job.steps * size / (pace.images_per_s * job.runtime.workers)
    lines.append(
        f"  measured: {pace.images_per_s:.4g} images/s of one worker{share} ({UPDATES} updates of "
        f"{images} random image{'s' * (images != 1)} after a first one)"
    )
    more = f", {job.runtime.workers} workers as fast as one each" if job.runtime.workers > 1 else ""
    most = ""
    if images < worker_share(job):  # what an update costs whatever its images weighs more
        most, more = "at most ", f"{more}, larger updates take less an image"
    return [
        *lines,
        f"  estimate: {most}{_duration(total)} for all updates{more}; reading data, checkpoints "
        "and validation come on top",
    ]


def _affordable(job: Job, memory: Memory, flops: int, peak: Peak | None, free: int | None) -> int:
    """How many images a worker's measured updates may have: its share, fewer, or none."""
    if free is None:
        return 0
    share, at_once = worker_share(job), images_at_once(job, job.runtime.fewest)
    fixed = memory.total - memory.activations
    room = free / SPARE - fixed
    if room < memory.activations:  # parts of a batch stay as large as they are, or are alone
        share = at_once = int(at_once * room / memory.activations)
    if peak is not None:
        share = min(share, int(SECONDS * FAIR * peak.flops / ((1 + UPDATES) * flops)))
    return max(0, share)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
