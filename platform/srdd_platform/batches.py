"""A worker's slices of the global batches, of images or of codes, read a little ahead.

What a batch holds is a function of (settings, step) alone: neither the number of workers nor that
of the threads that read for them changes it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from srdd.fields import from_dict
from srdd.train.config import OptimConfig
from srdd.train.loop import Batch, Reduce
from srdd_platform.codes import choose_views, load_views
from srdd_platform.data import Augmentation, GlobalBatchSampler, ShardDataset
from srdd_platform.data.pixels import centre
from srdd_platform.jobs import Job

AHEAD = 2  # batches read before they are asked for, a thread

T = TypeVar("T")
R = TypeVar("R")
Read = Callable[[tuple[int, list[int]]], Batch]  # (epoch, samples) to their batch


def batches(job: Job, reduce: Reduce, first_step: int, device: torch.device) -> Iterator[Batch]:
    """This worker's slices of the global batches from ``first_step`` on.

    Raises:
        UserError: data that cannot be read, or a batch that does not fit it or the workers.
    """
    optim = from_dict(OptimConfig, job.settings["optim"], "optim")
    n, read = _codes(job, optim) if job.codes else _pixels(job, optim)
    sampler = GlobalBatchSampler(
        n, optim.batch_size, seed=optim.seed, first_step=first_step, last_step=job.steps,
        rank=reduce.rank, world=reduce.world,
    )  # fmt: skip
    for batch in read_ahead(sampler.with_epochs(), read, 0 if job.codes else job.loader_workers):
        yield Batch(
            batch.inputs.to(device), batch.labels_b.to(device), batch.index_b.to(device),
            optim.batch_size,
        )  # fmt: skip


def read_ahead(tasks: Iterator[T], work: Callable[[T], R], threads: int) -> Iterator[R]:
    """The results of ``work`` in the order of ``tasks``, computed by threads before their turn.

    Decoding a PNG leaves the interpreter free, so threads read while a training computes.
    """
    if not threads:
        yield from map(work, tasks)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="read ahead") as pool:
        pending: deque[Future[R]] = deque(
            pool.submit(work, task) for task in islice(tasks, AHEAD * threads)
        )
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(work, task) for task in islice(tasks, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _pixels(job: Job, optim: OptimConfig) -> tuple[int, Read]:
    """The number of images, and how a slice of them is read: cut by epoch and sample."""
    dataset = ShardDataset(Path(job.data), "train")
    varied = None
    if "augmentation" in job.settings:
        varied = Augmentation(**job.settings["augmentation"], seed=optim.seed)

    def read(task: tuple[int, list[int]]) -> Batch:
        epoch, rows = task
        cuts = [centre if varied is None else varied.cut(epoch, i) for i in rows]
        samples = [dataset.sample(i, cut) for i, cut in zip(rows, cuts, strict=True)]
        images = torch.stack([sample["image"] for sample in samples])
        labels = torch.tensor([sample["label"] for sample in samples])
        return Batch(images, labels, torch.tensor(rows), optim.batch_size)

    return len(dataset), read


def _codes(job: Job, optim: OptimConfig) -> tuple[int, Read]:
    """The number of images, and how codes of a slice of them are taken: the epoch's views."""
    codes_nVL, labels_n = load_views(Path(job.codes), "train")
    views = codes_nVL.shape[1]

    def read(task: tuple[int, list[int]]) -> Batch:
        epoch, rows = task
        index_b = torch.tensor(rows)
        view_b: int | Tensor = choose_views(optim.seed, epoch, rows, views) if views > 1 else 0
        codes_bL = codes_nVL[index_b, view_b].long()
        return Batch(codes_bL, labels_n[index_b], index_b, optim.batch_size)

    return len(codes_nVL), read
