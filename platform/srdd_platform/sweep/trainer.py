"""How a sweep trains the models that it lacks: a preset's recipe, on a cluster."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from srdd.presets import Preset, get_preset
from srdd_platform.core.cluster import Cluster
from srdd_platform.core.runs import model_dir
from srdd_platform.distill.run import Distillation, distill, stage_steps
from srdd_platform.evaluation.protocol import EvaluationConfig
from srdd_platform.sweep.options import Request
from srdd_platform.train.extend import is_finished
from srdd_platform.train.job import Job
from srdd_platform.train.launcher import train
from srdd_platform.train.options import Options, TransformerOptions
from srdd_platform.train.progress import Display

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """Trains models one after the other; what is finished is compared with its settings."""

    preset: Preset
    options: Options
    cluster: Cluster
    display: Display  # shows how far the trainings are

    @classmethod
    def of(cls, request: Request, cluster: Cluster, display: Display) -> Self:
        """The trainer of a sweep that is asked for."""
        args = request.args
        device: Literal["cpu", "cuda"] = "cuda" if args.device.startswith("cuda") else "cpu"
        return cls(
            preset=get_preset(args.preset), options=Options(device=device), cluster=cluster,
            display=display,
        )  # fmt: skip

    def train(self, jobs: Sequence[Job], what: str) -> None:
        """Train what is not finished, side by side.

        Args:
            jobs: the trainings.
            what: they train, in words.

        Raises:
            UserError: a finished one has other settings, or as :func:`train`.
        """
        finished = all(is_finished(Path(job.run)) for job in jobs)
        if not finished:
            logger.info("Training %s", what)
        train(jobs, None if finished else self.cluster.connect(), self.display)

    def distil(self, parent: Path, data: Path, sides: tuple[int, ...], out: Path) -> None:
        """Train a model over fewer scales, begun with the weights of its parent.

        Args:
            parent: a pipeline or run directory.
            data: shards.
            sides: the scales that are kept.
            out: the run directory.

        Raises:
            UserError: the scales are not a part of the parent's, or as :func:`train`.
        """
        job = Distillation(
            model=model_dir(parent), data=str(data), out=out, stages=(sides,),
            steps=stage_steps(self.preset),
            options=TransformerOptions(device=self.options.device),
            evaluation=EvaluationConfig(data=str(data), extractor="classifier", weights=""),
        )  # fmt: skip
        if not is_finished(out):
            self.cluster.connect()
        distill(job, self.preset, None, self.display)
