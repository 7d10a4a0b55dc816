"""Reference rows: what the trials are to be read against.

Real images show the floor, a tokenizer's reconstructions the ceiling it sets, an untrained model
the other end. The sweep names the sampler settings that are measured beside them.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from srdd.errors import UserError
from srdd.generator import Generator, HasUntrained, Reconstructs
from srdd.load import load_pipeline
from srdd.validation import from_dict
from srdd_platform.core.runs import model_dir
from srdd_platform.data.dataset import ShardDataset, image_batches
from srdd_platform.evaluation.evaluator import load_evaluator
from srdd_platform.evaluation.generate import Load, load_generator
from srdd_platform.evaluation.protocol import EvaluationConfig, reference_key, weights_digest
from srdd_platform.evaluation.rows import to_json
from srdd_platform.evaluation.runner import Make, missing, run_missing
from srdd_platform.sweep.definition import MODEL, Reference

What = Literal["held-out", "reconstruction", "untrained", "sampler"]
BEST_SEEDS = (0, 1, 2)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceSpec:
    """One reference row to be made."""

    name: str
    order: int
    what: What
    config: Any  # the sampler's settings
    pipeline: str = ""  # another model's directory
    num: int | None = None
    seed: int | None = None


def check_references(references: Sequence[Reference], settings_type: type[Any]) -> None:
    """Refuse references whose settings no model of a family can have.

    Args:
        references: of the sweep.
        settings_type: the dataclass of the sampler's settings.

    Raises:
        UserError: the reference and the setting are named.
    """
    for reference in references:
        where = f"references: {reference.name}"
        from_dict(settings_type, dict(reference.settings), where)


def before_search(
    models: Mapping[Path, Generator[Any]],
    references: Sequence[Reference],
    names: Mapping[Path, str] | None = None,
) -> list[ReferenceSpec]:
    """The rows that do not need the search's outcome.

    Args:
        models: by their directories, the searched one first.
        references: sampler settings. Those that a model cannot take are left out.
        names: of models, where their cards do not tell them apart.
    """
    called = {path: model.card.name for path, model in models.items()} | dict(names or {})
    (searched, generator), *_ = models.items()
    plain = type(generator.sampler)()
    specs: list[dict[str, Any]] = [{"name": "real, held out", "what": "held-out", "config": plain}]
    if isinstance(generator, Reconstructs):
        name = "tokenizer reconstruction of held out"
        specs.append({"name": name, "what": "reconstruction", "config": plain})
    if isinstance(generator, HasUntrained):
        specs.append({"name": "untrained", "what": "untrained", "config": plain})
    everywhere = [reference for reference in references if reference.every_model]
    for directory, model in models.items():
        path = "" if directory == searched else str(model_dir(directory).resolve())
        taken = _taken(model, called[directory], everywhere)
        specs += [spec | {"pipeline": path} for spec in taken]
    alone = [reference for reference in references if not reference.every_model]
    specs += _taken(generator, called[searched], alone)
    return [ReferenceSpec(order=order, **spec) for order, spec in enumerate(specs)]


def _taken(
    model: Generator[Any], model_name: str, references: Sequence[Reference]
) -> list[dict[str, Any]]:
    """The references that a model can take, with its name in theirs."""
    found = []
    for reference in references:
        name = reference.name.replace(MODEL, model_name)
        try:
            config = from_dict(type(model.sampler), dict(reference.settings))
            model.check_settings(config)
        except UserError as error:
            logger.info("The reference %s is left out: %s", name, error)
            continue
        found.append({"name": name, "what": "sampler", "config": config})
    return found


def after_search(
    before: Sequence[ReferenceSpec], best: Any, key: str, num: int, pipeline: str = ""
) -> list[ReferenceSpec]:
    """The best setting, row ``key``, at the held-out split's size, and the untrained model.

    Args:
        before: the rows of :func:`before_search`.
        best: the sampler's settings.
        key: of the best trial's row.
        num: images of the held-out split.
        pipeline: directory of the best trial's model, where that is not the searched one.
    """
    order = len(before)
    specs = [
        ReferenceSpec(
            name=f"best setting ({key[:6]}), n={num}, seed {seed}", what="sampler", config=best,
            order=order + i, num=num, seed=seed, pipeline=pipeline,
        )
        for i, seed in enumerate(BEST_SEEDS)
    ]  # fmt: skip
    last = order + len(specs)
    return specs + [
        replace(spec, name=f"untrained, n={num}", order=last, num=num)
        for spec in before if spec.what == "untrained"
    ]  # fmt: skip


def spec_key(spec: ReferenceSpec, model: str, evaluation: EvaluationConfig, weights: str) -> str:
    """The row's key.

    Args:
        spec: what it shows.
        model: the weights' digest of the model that it measures.
        evaluation: how the row is made.
        weights: the first 16 digits of the SHA-256 of the extractor's weights.
    """
    asked = [spec.name, spec.what, spec.num, spec.seed]
    return reference_key(asked, model, spec.config, evaluation, weights)


def missing_references(
    directory: Path,
    pipeline: Path,
    evaluation: EvaluationConfig,
    specs: Sequence[ReferenceSpec],
    weights: str,
) -> list[tuple[ReferenceSpec, str]]:
    """The specs whose rows are not on disk, with their keys."""
    digest = cache(weights_digest)  # weights may be large: those of a model are read once
    measured = [Path(spec.pipeline) if spec.pipeline else model_dir(pipeline) for spec in specs]
    keys = [
        spec_key(spec, digest(model), evaluation, weights)
        for spec, model in zip(specs, measured, strict=True)
    ]
    return missing(directory, list(zip(specs, keys, strict=True)))


def run_references(
    directory: Path,
    pipeline: Path,
    evaluation: EvaluationConfig,
    wanted: Sequence[tuple[ReferenceSpec, str]],
    *,
    slots: int,
    threads: int,
    load: Load = load_pipeline,
) -> None:
    """Make rows, ``slots`` at a time. Ray must be connected.

    Args:
        directory: of the sweep.
        pipeline: the searched model's directory.
        evaluation: how rows are made.
        wanted: what they show, with their keys.
        slots: tasks at once.
        threads: CPUs of each.
        load: what loads a model.
    """
    maker = partial(load_maker, directory.resolve(), pipeline.resolve(), evaluation, load)
    run_missing(
        directory, wanted, maker, name="evaluate references", device=evaluation.device,
        threads=threads, slots=slots,
    )  # fmt: skip


_evaluator = lru_cache(maxsize=1)(load_evaluator)  # a worker may make rows before and after


def load_maker(
    directory: Path, pipeline: Path, evaluation: EvaluationConfig, load: Load = load_pipeline
) -> Make[ReferenceSpec]:
    """What makes reference rows: loads the searched model, real images and the extractor."""
    evaluator = _evaluator(evaluation)
    searched = load_generator(pipeline, evaluation, load)
    held_out = ShardDataset(Path(evaluation.data), "val")

    def make(spec: ReferenceSpec, key: str) -> dict[str, Any]:
        grid = directory / "grids" / f"{key}.png"
        named: dict[str, Any] = {"key": key, "order": spec.order, "name": spec.name, "grid": grid}
        if spec.what in ("held-out", "reconstruction"):
            batches = image_batches(held_out, size=evaluation.batch_size)
            if spec.what == "reconstruction":
                batches = ((_reconstruct(searched, images), labels) for images, labels in batches)
            row = evaluator.images_row(batches, beside=searched, n=len(held_out), **named)
        else:
            other = spec.pipeline
            model = load_generator(other, evaluation, load) if other else searched
            if spec.what == "untrained":
                assert isinstance(model, HasUntrained)
                model = model.untrained()
            row = evaluator.row(
                model, spec.config, kind="reference", n=spec.num, seed=spec.seed, **named
            )
        return to_json(row)

    return make


def _reconstruct(model: Generator[Any], images: Tensor) -> Tensor:
    """A model's reconstruction of uint8 images, as uint8 on the CPU."""
    assert isinstance(model, Reconstructs)
    return model.reconstruct(images).cpu()
