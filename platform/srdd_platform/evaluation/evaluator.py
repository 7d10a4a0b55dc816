"""Judging images: real ones, an extractor and a protocol, loaded once for many rows.

An :class:`Evaluator` knows no model. It judges the images that a generator makes, or any others,
and knows no Ray: a Tune trial, a test or a script can call it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.generator import Card, Generator
from srdd_platform.data.dataset import ShardDataset, image_batches
from srdd_platform.evaluation.extractors import Extractor, load_extractor
from srdd_platform.evaluation.generate import Batch, Samples, with_grid
from srdd_platform.evaluation.metrics import Reference, measure
from srdd_platform.evaluation.protocol import EvaluationConfig, row_key, under
from srdd_platform.evaluation.rows import Row, settings_columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluator:
    """What images are judged by."""

    evaluation: EvaluationConfig
    extractor: Extractor
    reference: Reference  # features of the real images
    resolution: int  # of the real images, pixels a side
    num_classes: int  # of the real images

    @property
    def _classifier_classes(self) -> int | None:
        """The classes that the extractor knows, where it is a classifier."""
        logits_nK = self.reference.real.logits_nK
        return logits_nK.shape[1] if self.evaluation.extractor == "classifier" else None

    def check(self, card: Card) -> None:
        """Refuse a model whose images cannot be judged.

        Raises:
            UserError: its images have another size, or the classifier knows other classes.
        """
        if card.resolution != self.resolution:
            raise UserError(
                f"the model draws {card.resolution} px images, the data's are {self.resolution}"
            )
        known, wanted = self._classifier_classes, len(card.class_names)
        if known not in (None, wanted) and not card.unconditional:
            raise UserError(f"the classifier knows {known} classes, the model {wanted}")

    def key(self, model: str, config: Any) -> str:
        """The key of the row of a model, by its weights' digest, and its sampler's settings."""
        return row_key(model, config, self.evaluation, self.extractor.name)

    def evaluate_images(
        self, batches: Iterable[Batch], *, grid: Path | None = None
    ) -> dict[str, Any]:
        """The quality of images, whoever made them. Only their features are kept.

        Args:
            batches: images uint8 [b, 3, R, R], each batch with its classes int64 [b], or all with
                None. The classes are those of the real images.
            grid: where a grid of the first images goes.

        Returns:
            The columns of a row that hold quality, and its protocol.

        Raises:
            UserError: the images are too few, of another size, or not uint8, or lack classes.
            FloatingPointError: a feature is not finite.
        """
        known = self._classifier_classes == self.num_classes
        return self._quality(batches, grid, accuracy=known)

    def evaluate(
        self,
        generator: Generator[Any],
        config: Any,
        *,
        n: int | None = None,
        seed: int | None = None,
        grid: Path | None = None,
    ) -> dict[str, Any]:
        """The quality of a generator's images, the same number of each class, and their cost.

        Args:
            generator: on its device.
            config: its sampler's settings.
            n: images, if not as configured.
            seed: of the images, if not as configured.
            grid: where a grid of the first images goes.

        Returns:
            The columns of a row that hold quality and cost, and its protocol.

        Raises:
            UserError: as :meth:`check`, or the settings do not fit the generator.
            FloatingPointError: the generator or the extractor gave values that are not finite.
        """
        self.check(generator.card)
        samples = Samples(
            generator, config, n=n or self.evaluation.num,
            seed=self.evaluation.seed if seed is None else seed,
            batch_size=self.evaluation.batch_size,
        )  # fmt: skip
        known = self._classifier_classes is not None and not generator.card.unconditional
        return {**self._quality(samples, grid, accuracy=known), **samples.cost}

    def _quality(
        self, batches: Iterable[Batch], grid: Path | None, *, accuracy: bool
    ) -> dict[str, Any]:
        """Metrics of images; ``accuracy``: whether the classifier's classes are theirs."""
        labels: list[Tensor | None] = []

        def images() -> Iterator[Tensor]:
            for images_B, labels_B in with_grid(batches, grid):
                self._check_batch(images_B, labels_B)
                labels.append(labels_B)
                yield images_B

        features = self.extractor(images())
        given = [labels_B for labels_B in labels if labels_B is not None]
        if given and len(given) < len(labels):
            raise UserError("some batches of images have classes, and some have none")
        labels_n = torch.cat(given) if given else None
        found = measure(features, self.reference, labels_n, accuracy=accuracy)
        return under(self.evaluation.protocol, found)

    def _check_batch(self, images: Tensor, labels: Tensor | None) -> None:
        """Refuse images of another size than the real ones, and classes of other images."""
        if labels is not None and len(labels) != len(images):
            raise UserError(f"a batch has {len(images)} images and {len(labels)} classes")
        side = self.resolution
        if images.shape[-2:] != (side, side):
            size = "x".join(map(str, images.shape[-2:]))
            raise UserError(f"the images are {size} px, the data's are {side}x{side}")

    def row(
        self,
        generator: Generator[Any],
        config: Any,
        *,
        key: str,
        order: int,
        kind: str = "trial",
        name: str = "",
        n: int | None = None,
        seed: int | None = None,
        grid: Path | None = None,
    ) -> Row:
        """The row of :meth:`evaluate`; where a value is not finite, a row that says so.

        Args:
            generator: on its device.
            config: its sampler's settings.
            key: the row's.
            order: the row's place in the table.
            kind: "trial" or "reference".
            name: what a reference row is.
            n: images, if not as configured.
            seed: of the images, if not as configured.
            grid: where a grid of the first images goes.

        Raises:
            UserError: as :meth:`evaluate`.
        """
        n = n or self.evaluation.num
        seed = self.evaluation.seed if seed is None else seed
        shared = self._shared(key=key, kind=kind, name=name, order=order, n=n) | {
            "tags": generator.card.tags,
            "settings": settings_columns(config),
            "seed": seed,
            "device": self.evaluation.device,
            "dtype": self.evaluation.dtype,
            "batch_size": min(n, self.evaluation.batch_size),
        }
        return _row(shared, lambda: self.evaluate(generator, config, n=n, seed=seed, grid=grid))

    def images_row(
        self,
        batches: Iterable[Batch],
        *,
        beside: Generator[Any],
        key: str,
        order: int,
        name: str,
        n: int,
        grid: Path | None = None,
    ) -> Row:
        """The reference row of :meth:`evaluate_images`; as :meth:`row` where it is not finite.

        Args:
            batches: as there.
            beside: a generator whose rows share the table; its columns are null.
            key: the row's.
            order: the row's place in the table.
            name: what the images are.
            n: how many there are.
            grid: where a grid of the first images goes.

        Raises:
            UserError: as there.
        """
        shared = self._shared(key=key, kind="reference", name=name, order=order, n=n) | {
            "tags": dict.fromkeys(beside.card.tags),
            "settings": dict.fromkeys(settings_columns(beside.sampler)),
        }
        return _row(shared, lambda: self.evaluate_images(batches, grid=grid))

    def _shared(self, **columns: Any) -> dict[str, Any]:
        """Columns of a row with those that all rows share."""
        return {
            "extractor": self.extractor.name,
            "reference": f"train n={len(self.reference.real.features_nD)}",
            "protocol": self.evaluation.protocol,
            **columns,
        }


def _row(columns: dict[str, Any], measure_columns: Callable[[], dict[str, Any]]) -> Row:
    """A row of columns and those measured; a value that is not finite makes it a failed one."""
    try:
        return Row(**{**columns, **measure_columns()})
    except FloatingPointError as error:
        return Row(**columns, status="failed", error=str(error))


def load_evaluator(evaluation: EvaluationConfig, train: ShardDataset | None = None) -> Evaluator:
    """Load an extractor and the features of the real images.

    Args:
        evaluation: what to load, and what all rows share.
        train: the real images, where they are not all of the train split in a local directory.

    Raises:
        UserError: a part is missing, or is of another kind.
    """
    weights = Path(evaluation.weights)
    extractor = load_extractor(evaluation.extractor, weights, evaluation.device)
    train = train or ShardDataset(Path(evaluation.data), "train")
    features = extractor(images for images, _ in image_batches(train))
    return Evaluator(
        evaluation=evaluation, extractor=extractor,
        reference=Reference(features, torch.from_numpy(train.labels.copy())),
        resolution=train.resolution, num_classes=len(train.classes),
    )  # fmt: skip
