"""A worker's slices of the global batches, read a little ahead.

What a batch holds is a function of (settings, step) alone: neither the number of workers nor that
of the threads that read for them changes it.
"""

from collections.abc import Iterator

import torch

from srdd.train.config import OptimConfig
from srdd.train.task import Batch
from srdd.train.workers import Reduce
from srdd_platform.data.ahead import read_ahead
from srdd_platform.data.dataset import GlobalBatchSampler
from srdd_platform.train.data import TrainingData


def batches(
    data: TrainingData,
    optim: OptimConfig,
    reduce: Reduce,
    steps: range,
    device: torch.device,
) -> Iterator[Batch]:
    """This worker's slices of the global batches of some updates.

    Raises:
        UserError: data that cannot be read, or a batch that does not fit it or the workers.
    """
    sampler = GlobalBatchSampler(
        data.num, optim.batch_size, seed=optim.seed, first_step=steps.start, last_step=steps.stop,
        rank=reduce.rank, world=reduce.world,
    )  # fmt: skip
    with data.filling():
        for inputs, labels_b, index_b, size in read_ahead(
            sampler.with_epochs(), data.read, data.threads
        ):
            yield Batch(inputs.to(device), labels_b.to(device), index_b.to(device), size)
