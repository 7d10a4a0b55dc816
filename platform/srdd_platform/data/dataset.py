"""Reading shards: by index for training, in order for extraction, whole for small sets.

Training reads through the index, so that the global batch is a function of (seed, step) alone:
any number of workers sees the same batches, and a run resumes at any step from one integer.
"""

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from webdataset import tariterators

from srdd.errors import UserError
from srdd_platform.data.index import load_split
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.pixels import Cut, centre
from srdd_platform.data.sources import EPOCH_DRAWS, permutation

MAX_OPEN = 256  # shards kept open by a process; with more, each read opens and closes


class Sample(TypedDict):
    """One image: uint8 [3, R, R], its class index, its place in the split."""

    image: Tensor
    label: int
    index: int


class ShardDataset(Dataset[Sample]):
    """A split as a map from index to sample.

    Opening it inspects every shard of the split. It may be pickled, forked and read from threads:
    file descriptors belong to a process, and no position is shared.

    Attributes:
        keys: str [n]. labels: int64 [n]. classes: the class names. resolution: R in pixels.
    """

    def __init__(self, directory: Path, split: str, *, verify: bool = False) -> None:
        """Open a split; ``verify`` compares every byte with the manifest first.

        Raises:
            UserError: not a shard directory, no such split, an empty split, damaged shards.
        """
        self.manifest = Manifest.load(directory)
        self.split = split
        indexes = load_split(directory, self.manifest, split, verify=verify)
        if not indexes:
            raise UserError(f"split {split!r} of {directory} has no images")
        self.keys = np.concatenate([index.keys for index in indexes])
        self.labels = np.concatenate([index.labels for index in indexes])
        self.classes = self.manifest.classes
        self.resolution = self.manifest.resolution
        self._paths = [directory / shard.name for shard in self.manifest.splits[split].shards]
        self._shards = np.repeat(np.arange(len(indexes)), [len(index) for index in indexes])
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._sizes = np.concatenate([index.sizes for index in indexes])
        self._files: dict[int, int] = {}
        self._pid = os.getpid()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample: the centre of its image, where more of it is stored.

        Raises:
            UserError: its bytes are damaged; it names the shard and the sample.
        """
        return self.sample(index, centre)

    def sample(self, index: int, cut: Cut) -> Sample:
        """Read one sample, cut to R x R by ``cut``; errors as for ``[index]``."""
        i = range(len(self))[index]  # negative counts from the end, beyond it is an IndexError
        path = self._paths[self._shards[i]]
        data = self._read(int(self._shards[i]), int(self._offsets[i]), int(self._sizes[i]))
        image = decode(data, self.manifest, f"{self.keys[i]} in {path}", cut)
        return {"image": image, "label": int(self.labels[i]), "index": i}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        if self._pid != os.getpid():  # after a fork, or unpickled elsewhere
            self._files, self._pid = {}, os.getpid()
        file = self._files.get(shard)
        if file is not None:
            return os.pread(file, size, offset)
        try:
            file = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"cannot read {self._paths[shard]}: {error.strerror}") from None
        try:
            return os.pread(file, size, offset)
        finally:
            if len(self._paths) > MAX_OPEN or self._files.setdefault(shard, file) != file:
                os.close(file)

    def __del__(self) -> None:
        if getattr(self, "_pid", None) == os.getpid():
            for file in self._files.values():
                os.close(file)


def decode(png: bytes, manifest: Manifest, name: str, cut: Cut = centre) -> Tensor:
    """PNG bytes to uint8 [3, R, R], cut from the stored image.

    Raises:
        UserError: the bytes are damaged, or of another size; it gives ``name``.
    """
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            pixels = np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises nearly anything on a damaged file
        raise UserError(f"{name} is damaged: prepare the data again ({error})") from None
    side, resolution = manifest.stored_side, manifest.resolution
    if min(pixels.shape[:2]) != side or (side == resolution and max(pixels.shape[:2]) != side):
        raise UserError(f"{name} is not {side}x{side}: prepare the data again")
    return torch.from_numpy(cut(pixels, resolution)).permute(2, 0, 1).contiguous()


def load_arrays(directory: Path, split: str) -> tuple[Tensor, Tensor]:
    """A whole split in memory: images uint8 [n, 3, R, R], labels int64 [n]."""
    dataset = ShardDataset(directory, split)
    images = torch.empty(len(dataset), 3, dataset.resolution, dataset.resolution, dtype=torch.uint8)
    for i in range(len(dataset)):
        images[i] = dataset[i]["image"]
    return images, torch.from_numpy(dataset.labels.copy())


def stream(
    directory: Path, split: str, shard_names: Sequence[str] | None = None
) -> Iterator[tuple[str, Tensor, int]]:
    """Yield (key, image uint8 [3, R, R], label) in shard order, one pass from front to back.

    Args:
        directory: the shard directory.
        split: "train" or "val".
        shard_names: these shards alone, in this order: a worker's share of the split.

    Raises:
        UserError: an unknown split or shard, or a shard that is missing or damaged.
    """
    manifest = Manifest.load(directory)
    if split not in manifest.splits:
        raise UserError(f"{directory} has no split {split!r}, only {', '.join(manifest.splits)}")
    shards = {shard.name: shard for shard in manifest.splits[split].shards}
    for name in shards if shard_names is None else shard_names:
        if name not in shards:
            raise UserError(f"split {split!r} of {directory} has no shard {name!r}")
        num = 0
        try:
            with (directory / name).open("rb") as file:
                # opened here, not by URL: a path may hold any character
                members = tariterators.tar_file_expander([{"url": name, "stream": file}])
                for sample in tariterators.group_by_keys(members):
                    key = str(sample["__key__"])
                    image = decode(sample["png"], manifest, f"{key} in {name}")
                    yield key, image, int(sample["cls"])
                    num += 1
        except UserError:
            raise
        except (OSError, EOFError, ValueError, KeyError, tarfile.TarError) as error:
            raise UserError(_damaged(directory / name, f"{type(error).__name__}")) from error
        if num != shards[name].num:  # a damaged header ends a tar without an error
            raise UserError(_damaged(directory / name, f"{num} of {shards[name].num} samples"))


def _damaged(path: Path, why: str) -> str:
    return f"{path} is missing or damaged ({why}): copy it again, or prepare the data again"


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
