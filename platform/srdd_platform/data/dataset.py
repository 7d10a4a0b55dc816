"""Reading shards by index, so that the global batch is a function of (seed, step) alone.

Any number of workers sees the same batches, and a run resumes at any step from one integer.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from srdd.errors import UserError
from srdd_platform.data.damage import Skipped, listed
from srdd_platform.data.index import sample_key
from srdd_platform.data.manifest import Request, Shard
from srdd_platform.data.modes import BadImageError
from srdd_platform.data.pixels import Cut, centre, read_png
from srdd_platform.data.sources import EPOCH_DRAWS, permutation
from srdd_platform.data.store import LocalStore, Store

CHUNK = 64  # samples read at once, of a whole split


class Sample(TypedDict):
    """One image: uint8 [3, R, R], its class index, its place among the usable of the split."""

    image: Tensor
    label: int
    index: int


class ShardDataset(Dataset[Sample]):
    """A split as a map from index to sample: those that can be used, in their order.

    Attributes:
        numbers: int64 [n], the samples' numbers in the split, before any was left out.
        labels: int64 [n]. manifest: of the data. classes: the class names. resolution: R, pixels.
    """

    def __init__(
        self,
        source: Store | Path,
        split: str,
        skipped: Skipped | None = None,
        *,
        shards: Sequence[str] | None = None,
    ) -> None:
        """Open a split.

        Args:
            source: a shard directory, or shards opened elsewhere.
            split: "train" or "val".
            skipped: samples and shards to leave out, as :func:`usable` found them, who looked at
                the bytes; None looks at them and refuses any damage.
            shards: these alone.

        Raises:
            UserError: not a shard directory, no such split, an empty split, damaged shards.
        """
        self.store = LocalStore(source) if isinstance(source, Path) else source
        self.manifest = self.store.manifest
        self.split = split
        check_split(self.store, split)
        if skipped is None:
            if damages := self.store.inspect(split):
                raise UserError(f"{self.store.name} has damaged shards: {listed(damages)}; copy "
                                "them again, or prepare the data again")  # fmt: skip
            skipped = {}
        self._names = [shard.name for shard in self.manifest.splits[split].shards]
        rows = self._rows(skipped, shards)
        self.numbers, self.labels = rows[:, 0].copy(), rows[:, 1].copy()
        self._places = rows[:, 2:].copy()
        self.classes = self.manifest.classes
        self.resolution = self.manifest.resolution
        if not len(self):
            raise UserError(f"split {split!r} of {self.store.name} has no images")
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise UserError(f"{self.store.name} has labels beyond the classes of its manifest: "
                            "prepare the data again")  # fmt: skip

    def _rows(self, skipped: Skipped, shards: Sequence[str] | None) -> npt.NDArray[np.int64]:
        """The usable samples, [n, 5]: number, label, shard, offset, size."""
        parts: list[npt.NDArray[np.int64]] = []
        first = 0
        for place, shard in enumerate(self.manifest.splits[self.split].shards):
            if shard.name not in skipped and (shards is None or shard.name in shards):
                index = self.store.index(self.split, shard)
                number = np.arange(first, first + shard.num)
                columns = (np.full(shard.num, place), index.offsets, index.sizes)
                parts.append(np.stack((number, index.labels, *columns), axis=1))
            first += shard.num
        rows = np.concatenate(parts) if parts else np.zeros((0, 5), dtype=np.int64)
        lost = [int(name.rpartition("-")[2]) for name in skipped if name not in self._names]
        return rows[~np.isin(rows[:, 0], lost)] if lost else rows

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        """What a sample is called in its shard."""
        return sample_key(self.split, int(self.numbers[index]))

    def of_shard(self, name: str) -> range:
        """The usable samples of one shard."""
        rows = np.searchsorted(self._places[:, 0], self._names.index(name) + np.arange(2))
        return range(int(rows[0]), int(rows[1]))

    @property
    def whole_shards(self) -> list[Shard]:
        """The shards of which every sample can be used."""
        shards = self.manifest.splits[self.split].shards
        return [shard for shard in shards if len(self.of_shard(shard.name)) == shard.num]

    def __getitem__(self, index: int) -> Sample:
        """Read one sample: the centre of its image, where more of it is stored.

        Raises:
            UserError: its bytes are damaged; it names the shard and the sample.
        """
        return self.samples([range(len(self))[index]], [centre])[0]

    def samples(self, indices: Sequence[int], cuts: Sequence[Cut] | None = None) -> list[Sample]:
        """Read samples, each cut to R x R by its cut, or its centre; errors as for ``[index]``."""
        requests: list[Request] = []
        for shard, offset, size in self._places[list(indices)].tolist():
            requests.append((self._names[shard], offset, size))
        found = zip(
            indices, self.store.read(requests), cuts or [centre] * len(indices), strict=True
        )
        return [self._sample(index, png, cut) for index, png, cut in found]

    def _sample(self, index: int, png: bytes, cut: Cut) -> Sample:
        try:
            pixels = read_png(png, self.manifest.stored_side, self.resolution)
        except BadImageError as error:
            shard = self._names[self._places[index, 0]]
            raise UserError(f"{self.key(index)} in {self.store.name}/{shard} is {error}: copy or "
                            "prepare the data again") from None  # fmt: skip
        image = torch.from_numpy(cut(pixels, self.resolution)).permute(2, 0, 1)
        return {"image": image, "label": int(self.labels[index]), "index": index}


def stacked(samples: Sequence[Sample]) -> Tensor:
    """The images of samples: uint8 [n, 3, R, R], laid out in that order."""
    return torch.stack([sample["image"] for sample in samples]).contiguous()


def check_split(store: Store, split: str) -> None:
    """Refuse an unknown split.

    Raises:
        UserError: it names those there are.
    """
    if split not in store.manifest.splits:
        known = ", ".join(store.manifest.splits)
        raise UserError(f"{store.name} has no split {split!r}, only {known}")


def image_batches(
    dataset: ShardDataset, limit: int | None = None, size: int = CHUNK
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first images of a split in their order, in batches: uint8 [b, 3, R, R], labels [b]."""
    n = len(dataset) if limit is None else min(limit, len(dataset))
    for first in range(0, n, size):
        indices = range(first, min(first + size, n))
        labels = dataset.labels[indices.start : indices.stop].copy()
        yield stacked(dataset.samples(indices)), torch.from_numpy(labels)


def load_images(dataset: ShardDataset, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The first images of a split in memory: uint8 [n, 3, R, R], labels int64 [n]."""
    n = len(dataset) if limit is None else min(limit, len(dataset))
    images = torch.empty(n, 3, dataset.resolution, dataset.resolution, dtype=torch.uint8)
    first = 0
    for batch, _ in image_batches(dataset, limit):
        images[first : first + len(batch)] = batch
        first += len(batch)
    return images, torch.from_numpy(dataset.labels[:n].copy())


def load_arrays(directory: Path, split: str) -> tuple[Tensor, Tensor]:
    """A whole split in memory: images uint8 [n, 3, R, R], labels int64 [n].

    Raises:
        UserError: as for :class:`ShardDataset`; any damage is refused.
    """
    return load_images(ShardDataset(directory, split))


def steps_per_epoch(n: int, batch: int, *, drop_last: bool = True, world: int = 1) -> int:
    """Global batches an epoch.

    The last batch, if smaller than ``batch``, is dropped under ``drop_last``, and in any case
    where it has fewer samples than there are ranks: an empty slice would hang the others.
    """
    whole, rest = divmod(n, batch)
    return whole + int(not drop_last and rest >= world)


def global_indices(
    seed: int, step: int, n: int, batch: int, *, drop_last: bool = True, world: int = 1
) -> tuple[int, npt.NDArray[np.int64]]:
    """The samples of one optimizer step, all ranks together.

    Args:
        seed: of the order.
        step: counted from 0 through all epochs.
        n: samples in the split.
        batch: samples a global batch.
        drop_last: drop an epoch's last batch where it is smaller than ``batch``.
        world: ranks; matters without ``drop_last`` alone (see steps_per_epoch).

    Returns:
        (epoch, indices int64 [batch], or fewer for the last batch of an epoch).

    Raises:
        UserError: there is not one batch an epoch, or a rank would have no sample.
    """
    if batch < world:
        raise UserError(f"a global batch of {batch} leaves some of {world} workers without a "
                        "sample: raise the batch or take fewer workers")  # fmt: skip
    steps = steps_per_epoch(n, batch, drop_last=drop_last, world=world)
    if steps < 1:
        raise UserError(f"a batch of {batch} is more than the {n} images there are: lower it")
    epoch, place = divmod(step, steps)
    return epoch, _epoch_order(n, seed, epoch)[place * batch : (place + 1) * batch].copy()


class GlobalBatchSampler(Sampler[list[int]]):
    """Batch sampler whose global batches do not depend on the number of ranks.

    Rank r of w takes every w-th sample of the global batch, from r. It runs from ``first_step``
    to ``last_step`` (exclusive; by default the end of the epoch first_step lies in), through as
    many epochs as that takes: to resume at step k, pass first_step=k.
    """

    def __init__(
        self,
        n: int,
        batch: int,
        *,
        seed: int,
        first_step: int = 0,
        last_step: int | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
    ) -> None:
        """Set the range of steps.

        Raises:
            UserError: there is not one batch an epoch, or a rank would have no sample.
        """
        assert 0 <= rank < world, (rank, world)
        epoch, _ = global_indices(seed, first_step, n, batch, drop_last=drop_last, world=world)
        steps = steps_per_epoch(n, batch, drop_last=drop_last, world=world)
        self.n, self.batch, self.seed = n, batch, seed
        self.first_step = first_step
        self.last_step = (epoch + 1) * steps if last_step is None else last_step
        self.rank, self.world, self.drop_last = rank, world, drop_last

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step)

    def __iter__(self) -> Iterator[list[int]]:
        for _, rows in self.with_epochs():
            yield rows

    def with_epochs(self) -> Iterator[tuple[int, list[int]]]:
        """The batches, each with the epoch it lies in."""
        for step in range(self.first_step, self.last_step):
            epoch, indices = global_indices(
                self.seed, step, self.n, self.batch, drop_last=self.drop_last, world=self.world
            )
            yield epoch, indices[self.rank :: self.world].tolist()


@lru_cache(maxsize=2)
def _epoch_order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return permutation(n, seed, EPOCH_DRAWS, epoch)
