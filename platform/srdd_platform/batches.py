"""A worker's slices of the global batches, of images or of codes."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from srdd.fields import from_dict
from srdd.train.config import OptimConfig
from srdd.train.loop import Batch, Reduce
from srdd_platform.codes import load_codes
from srdd_platform.data import GlobalBatchSampler, Sample, ShardDataset
from srdd_platform.jobs import Job


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.tensor([sample["label"] for sample in samples])
    index = torch.tensor([sample["index"] for sample in samples])
    return torch.stack([sample["image"] for sample in samples]), labels, index


def batches(job: Job, reduce: Reduce, first_step: int, device: torch.device) -> Iterator[Batch]:
    """This worker's slices of the global batches from ``first_step`` on."""
    optim = from_dict(OptimConfig, job.settings["optim"], "optim")
    images = ShardDataset(Path(job.data), "train") if job.kind != "transformer" else None
    codes, labels = (
        load_codes(Path(job.codes), "train") if images is None else (torch.empty(0), torch.empty(0))
    )
    sampler = GlobalBatchSampler(
        len(images) if images is not None else len(codes),
        optim.batch_size,
        seed=optim.seed,
        first_step=first_step,
        last_step=job.steps,
        rank=reduce.rank,
        world=reduce.world,
    )
    if images is not None:
        loader = DataLoader(images, batch_sampler=sampler, collate_fn=_collate)
        for inputs, labels_b, index_b in loader:
            moved = (inputs.to(device), labels_b.to(device), index_b.to(device))
            yield Batch(*moved, optim.batch_size)
    else:
        for rows in sampler:
            index = torch.tensor(rows)
            chosen = (codes[index].long().to(device), labels[index].to(device), index.to(device))
            yield Batch(*chosen, optim.batch_size)
