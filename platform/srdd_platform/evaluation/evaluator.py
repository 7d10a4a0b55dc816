"""Judging a sampler setting: draw images, measure their quality and their cost, make a row.

:func:`Evaluator.trial` is a pure function of the model, the settings, n, the seed and the
extractor, and knows no Ray: Tune, a test or a script can call it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.load import load_var
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline
from srdd_platform.core.files import digest, sha256_file
from srdd_platform.core.images import grid_png
from srdd_platform.core.runs import model_dir
from srdd_platform.data.dataset import load_arrays
from srdd_platform.evaluation.extractors import Extractor, load_extractor
from srdd_platform.evaluation.generate import GRID_IMAGES, draw_timed
from srdd_platform.evaluation.metrics import Reference, measure
from srdd_platform.evaluation.protocol import PROTOCOL, under
from srdd_platform.evaluation.rows import Row, settings_columns


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What all rows of a sweep share."""

    data: str  # shard directory; its train split is the reference
    extractor: str  # "classifier" or "inception"
    weights: str  # the extractor's
    num: int = 1000  # images a row
    seed: int = 0
    batch_size: int = 250
    device: str = "cpu"
    dtype: str = "float32"
    protocol: str = PROTOCOL  # of a directory begun earlier: the one it was begun under


def weights_digest(pipeline_dir: Path) -> str:
    """Names a pipeline's weights, whatever its sampler settings."""
    parts = [pipeline_dir / part / "model.safetensors" for part in ("tokenizer", "transformer")]
    return digest([sha256_file(path) for path in parts])


def row_key(model: str, config: SamplerConfig, evaluation: EvaluationConfig, extractor: str) -> str:
    """The name of a row: equal for settings that differ in an inactive one only."""
    return digest(
        {
            "model": model,
            "parameters": config.active(),
            "n": evaluation.num,
            "seed": evaluation.seed,
            "extractor": extractor,
            "protocol": evaluation.protocol,
        }
    )


class Evaluator:
    """A pipeline, real images and an extractor, loaded once for many rows."""

    def __init__(
        self,
        pipeline_dir: Path,
        evaluation: EvaluationConfig,
        real: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Load all of it.

        Args:
            pipeline_dir: pipeline or run directory.
            evaluation: what all rows share.
            real: images uint8 and labels to compare with, where they are not all of the train
                split in a local directory.

        Raises:
            UserError: a part is missing, or they do not fit together.
        """
        self.evaluation = evaluation
        self.pipeline_dir = model_dir(pipeline_dir)
        self.pipeline = load_var(self.pipeline_dir).to(
            evaluation.device, getattr(torch, evaluation.dtype)
        )
        self.model = weights_digest(self.pipeline_dir)
        weights = Path(evaluation.weights)
        self.extractor: Extractor = load_extractor(evaluation.extractor, weights, evaluation.device)
        images, self.real_labels = real or load_arrays(Path(evaluation.data), "train")
        self.num_real = len(images)
        side = self.pipeline.tokenizer.config.resolution
        if images.shape[-1] != side:
            raise UserError(f"the model draws {side} px images, the data's are {images.shape[-1]}")
        features = self.extractor(images)
        found, wanted = features.logits_nK.shape[1], self.num_classes
        self.judges_classes = (
            evaluation.extractor == "classifier"
            and not self.pipeline.transformer.config.unconditional
        )
        if self.judges_classes and found != wanted:
            raise UserError(f"the classifier knows {found} classes, the model {wanted}")
        self.reference = Reference(features, self.real_labels)

    @property
    def num_classes(self) -> int:
        """Classes of the data."""
        return len(self.pipeline.class_names)

    def key(self, config: SamplerConfig) -> str:
        """The key of the row for ``config``."""
        return row_key(self.model, config, self.evaluation, self.extractor.name)

    def quality(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """The metrics of uint8 images [n, 3, R, R] of the classes asked for, and the protocol."""
        features = self.extractor(images)
        found = measure(features, self.reference, labels, accuracy=self.judges_classes)
        return under(self.evaluation.protocol, found)

    def _row(self, **values: Any) -> Row:
        reference = f"train n={self.num_real}"
        shared = {"extractor": self.extractor.name, "reference": reference}
        return Row(**{**shared, "protocol": self.evaluation.protocol, **values})

    def trial(
        self,
        config: SamplerConfig,
        *,
        order: int,
        kind: str = "trial",
        name: str = "",
        pipeline: Pipeline | None = None,
        key: str | None = None,
        n: int | None = None,
        seed: int | None = None,
        grid: Path | None = None,
    ) -> Row:
        """Evaluate a setting; a setting that fails makes a row that says so.

        Args:
            config: the sampler's settings.
            order: the row's place in the table.
            kind: "trial" or "reference".
            name: what a reference row is.
            pipeline: another model than the evaluator's.
            key: the row's key, if it is not that of ``config``.
            n: images, if not as configured.
            seed: of the images, if not as configured.
            grid: where a grid of the first samples goes.
        """
        pipeline = pipeline or self.pipeline
        n = n or self.evaluation.num
        seed = self.evaluation.seed if seed is None else seed
        shared: dict[str, Any] = {
            "key": key or self.key(config),
            "kind": kind,
            "name": name,
            "order": order,
            "tags": pipeline.card.tags,
            "settings": settings_columns(config),
            "n": n,
            "seed": seed,
            "device": self.evaluation.device,
            "dtype": self.evaluation.dtype,
            "batch_size": min(n, self.evaluation.batch_size),
        }
        try:
            measured = self._evaluate(pipeline, config, n, seed, grid)
        except FloatingPointError as error:
            return self._row(**shared, status="failed", error=str(error))
        return self._row(**shared, **measured)

    def _evaluate(
        self, pipeline: Pipeline, config: SamplerConfig, n: int, seed: int, grid: Path | None
    ) -> dict[str, Any]:
        drawn = draw_timed(
            pipeline, config, n, seed, self.evaluation.batch_size, self.evaluation.device
        )
        if grid is not None:
            grid_png(drawn.images[:GRID_IMAGES], grid)
        return {**self.quality(drawn.images, drawn.labels), **drawn.cost}

    def judge(
        self, images: Tensor, labels: Tensor, *, key: str, name: str, order: int, grid: Path
    ) -> Row:
        """A reference row of given images, uint8 [n, 3, R, R]: real ones or reconstructions."""
        grid_png(images[:GRID_IMAGES], grid)
        measured = self.quality(images, labels)
        return self._row(
            key=key, kind="reference", name=name, order=order, n=len(images),
            tags=dict.fromkeys(self.pipeline.card.tags),
            settings=dict.fromkeys(settings_columns(self.pipeline.sampler)), **measured,
        )  # fmt: skip

    def reconstruct(self, images: Tensor) -> Tensor:
        """The tokenizer's reconstruction of uint8 images, as uint8."""
        batches = images.split(self.evaluation.batch_size)
        return torch.cat([self.pipeline.reconstruct(batch).cpu() for batch in batches])

    def untrained(self) -> Pipeline:
        """The pipeline with a transformer that was never trained."""
        return self.pipeline.untrained()
