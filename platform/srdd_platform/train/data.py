"""What a training reads: images, or codes that were stored before."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from srdd.train.task import Batch, HeldOut
from srdd_platform.data.augment import Augmentation
from srdd_platform.data.codes import choose_views, load_codes, load_views
from srdd_platform.data.dataset import ShardDataset, load_images, stacked
from srdd_platform.data.pixels import centre
from srdd_platform.evaluation.extractors import load_extractor
from srdd_platform.evaluation.metrics import Reference
from srdd_platform.evaluation.protocol import MIN_IMAGES
from srdd_platform.train.job import Job

MAX_IMAGES = 10_000  # held out, of which at most so many are looked at

Slice = tuple[int, list[int]]  # an epoch, and the samples of one worker's share of a batch
Frechet = Callable[[Tensor, Tensor], float]


class TrainingData(Protocol):
    """The samples of one training. ``read`` and ``held_out`` give what its task takes."""

    @property
    def num(self) -> int:
        """Samples of the train split."""

    @property
    def threads(self) -> int:
        """Threads that read ahead."""

    @property
    def images(self) -> "ImageData":
        """The images, which previews show and fresh models are prepared from."""

    def read(self, part: Slice) -> Batch:
        """The samples of a slice, on the CPU; several threads may call it."""

    def filling(self) -> AbstractContextManager[None]:
        """While this holds, shards that are at a URI are copied here in the background."""

    def train_inputs(self) -> Tensor:
        """The train split as it is without augmentation."""

    def held_out(self, device: torch.device) -> HeldOut:
        """At most 10,000 held-out samples; ``device`` is where features of images are computed."""


class ImageData:
    """Images, each with the crop and flip of its epoch."""

    def __init__(
        self,
        dataset: Callable[[str], ShardDataset],
        *,
        batch_size: int = 1,
        augmentation: Augmentation | None = None,
        threads: int = 0,
        extractor: Sequence[str] = (),
    ) -> None:
        """Read images.

        Args:
            dataset: opens a split.
            batch_size: samples of a global batch.
            augmentation: None takes each image's centre.
            threads: that read ahead.
            extractor: name and weights, of the features for Fréchet distances; none: no distances.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.threads = threads
        self.extractor = tuple(extractor)

    @property
    def images(self) -> "ImageData":
        """Itself."""
        return self

    @cached_property
    def _train(self) -> ShardDataset:
        return self.dataset("train")

    @property
    def num(self) -> int:
        """Images of the train split."""
        return len(self._train)

    def read(self, part: Slice) -> Batch:
        """The images of a slice."""
        epoch, rows = part
        varied = self.augmentation
        cuts = [centre if varied is None else varied.cut(epoch, i) for i in rows]
        samples = self._train.samples(rows, cuts)
        labels = torch.tensor([sample["label"] for sample in samples])
        return Batch(stacked(samples), labels, torch.tensor(rows), self.batch_size)

    def filling(self) -> AbstractContextManager[None]:
        """Shards of the train split are copied."""
        return self._train.store.filling(self._train.whole_shards)

    def train_inputs(self) -> Tensor:
        """The first train images."""
        return load_images(self._train, MAX_IMAGES)[0]

    def held_out(self, device: torch.device) -> HeldOut:
        """The first held-out images, each its centre, and their distance to others.

        There is no distance without an extractor, or of fewer than 50 images.
        """
        dataset = self.dataset("val")
        with dataset.store.filling(dataset.whole_shards):
            images, labels = load_images(dataset, MAX_IMAGES)
        measured = self.extractor and len(images) >= MIN_IMAGES
        frechet = _frechet(self.extractor, device) if measured else None
        return HeldOut(inputs=images, labels_n=labels, frechet=frechet)

    def first(self, num: int) -> Tensor:
        """The first train images: uint8 [num, 3, R, R]."""
        return load_images(self.dataset("train"), num)[0]

    def spread(self, num: int) -> Tensor:
        """Held-out images at equal distances, as shards may be sorted by class."""
        held_out = self.dataset("val")
        wanted = min(num, len(held_out))
        return stacked(held_out.samples([i * len(held_out) // wanted for i in range(wanted)]))


class CodeData:
    """Codes of images, each of the view that its epoch shows."""

    def __init__(self, codes: Path, images: ImageData, *, batch_size: int = 1, seed: int = 0):
        """Read codes.

        Args:
            codes: directory of the code shards.
            images: what the codes were made of.
            batch_size: samples of a global batch.
            seed: of the views.
        """
        self.codes = codes
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.threads = 0  # they are in memory

    @cached_property
    def _train(self) -> tuple[Tensor, Tensor]:
        return load_views(self.codes, "train")

    @property
    def num(self) -> int:
        """Images of the train split."""
        return len(self._train[0])

    def read(self, part: Slice) -> Batch:
        """The codes of a slice."""
        epoch, rows = part
        codes_nVL, labels_n = self._train
        views = codes_nVL.shape[1]
        index_b = torch.tensor(rows)
        view_b: int | Tensor = choose_views(self.seed, epoch, rows, views) if views > 1 else 0
        codes_bL = codes_nVL[index_b, view_b].long()
        return Batch(codes_bL, labels_n[index_b], index_b, self.batch_size)

    def filling(self) -> AbstractContextManager[None]:
        """Nothing is copied."""
        return nullcontext()

    def train_inputs(self) -> Tensor:
        """The first view of each train image."""
        return self._train[0][:, 0]

    def held_out(self, device: torch.device) -> HeldOut:
        """The codes of the first held-out images."""
        codes_nL, labels_n = load_codes(self.codes, "val")
        return HeldOut(inputs=codes_nL[:MAX_IMAGES], labels_n=labels_n[:MAX_IMAGES])


def _frechet(extractor: Sequence[str], device: torch.device) -> Frechet:
    """The Fréchet distance of two sets of uint8 images on an extractor's features."""
    name, weights = extractor
    features = load_extractor(name, Path(weights), device.type)
    return lambda real, other: Reference(features(real)).frechet(features(other).features_nD)


def open_data(job: Job) -> TrainingData:
    """What a job trains on.

    Raises:
        UserError: there are no shards, or they cannot be read.
    """
    optim, more = job.optim, job.settings.more
    varied = None
    if "augmentation" in more:
        varied = Augmentation(**more["augmentation"], seed=optim.seed)
    images = ImageData(
        job.dataset, batch_size=optim.batch_size, augmentation=varied,
        threads=job.runtime.loader_workers, extractor=job.inputs.extractor,
    )  # fmt: skip
    if job.kind.reads == "images":
        return images
    codes = Path(job.inputs.codes)
    return CodeData(codes, images, batch_size=optim.batch_size, seed=optim.seed)
