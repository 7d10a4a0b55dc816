"""A worker's slices of the global batches, of images or of codes, read a little ahead.

What a batch holds is a function of (settings, step) alone: neither the number of workers nor that
of the threads that read for them changes it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from srdd.train.config import OptimConfig
from srdd.train.loop import Batch, Reduce
from srdd.validation import from_dict
from srdd_platform.data.ahead import read_ahead
from srdd_platform.data.augment import Augmentation
from srdd_platform.data.codes import choose_views, load_views
from srdd_platform.data.dataset import GlobalBatchSampler, stacked
from srdd_platform.data.pixels import centre
from srdd_platform.train.job import Job

Read = Callable[[tuple[int, list[int]]], Batch]  # (epoch, samples) to their batch


def batches(job: Job, reduce: Reduce, first_step: int, device: torch.device) -> Iterator[Batch]:
    """This worker's slices of the global batches from ``first_step`` on.

    Raises:
        UserError: data that cannot be read, or a batch that does not fit it or the workers.
    """
    optim = from_dict(OptimConfig, job.settings["optim"], "optim")
    n, read, filling = _codes(job, optim) if job.codes else _pixels(job, optim)
    sampler = GlobalBatchSampler(
        n, optim.batch_size, seed=optim.seed, first_step=first_step, last_step=job.steps,
        rank=reduce.rank, world=reduce.world,
    )  # fmt: skip
    threads = 0 if job.codes else job.loader_workers
    with filling:
        for inputs, labels_b, index_b, size in read_ahead(sampler.with_epochs(), read, threads):
            yield Batch(inputs.to(device), labels_b.to(device), index_b.to(device), size)


def _pixels(job: Job, optim: OptimConfig) -> tuple[int, Read, AbstractContextManager[None]]:
    """The number of images, how a slice of them is read, and what goes on meanwhile."""
    dataset = job.dataset("train")
    varied = None
    if "augmentation" in job.settings:
        varied = Augmentation(**job.settings["augmentation"], seed=optim.seed)

    def read(task: tuple[int, list[int]]) -> Batch:
        epoch, rows = task
        cuts = [centre if varied is None else varied.cut(epoch, i) for i in rows]
        samples = dataset.samples(rows, cuts)
        labels = torch.tensor([sample["label"] for sample in samples])
        return Batch(stacked(samples), labels, torch.tensor(rows), optim.batch_size)

    return len(dataset), read, dataset.store.filling(dataset.whole_shards)


def _codes(job: Job, optim: OptimConfig) -> tuple[int, Read, AbstractContextManager[None]]:
    """The same for codes: of the epoch's views."""
    codes_nVL, labels_n = load_views(Path(job.codes), "train")
    views = codes_nVL.shape[1]

    def read(task: tuple[int, list[int]]) -> Batch:
        epoch, rows = task
        index_b = torch.tensor(rows)
        view_b: int | Tensor = choose_views(optim.seed, epoch, rows, views) if views > 1 else 0
        codes_bL = codes_nVL[index_b, view_b].long()
        return Batch(codes_bL, labels_n[index_b], index_b, optim.batch_size)

    return len(codes_nVL), read, nullcontext()
