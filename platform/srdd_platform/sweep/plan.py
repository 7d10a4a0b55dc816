"""A sweep on its models: the definition held against what the models can vary."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json

from srdd.errors import UserError
from srdd.generator import Generator
from srdd.validation import to_dict
from srdd_platform.core.runs import model_dir
from srdd_platform.data.manifest import Manifest
from srdd_platform.evaluation.generate import Load
from srdd_platform.evaluation.protocol import (
    EvaluationConfig,
    begun_under,
    extractor_sha256,
    weights_digest,
)
from srdd_platform.report.specs import check_figures, figure_to_dict
from srdd_platform.sweep.best import best_rule
from srdd_platform.sweep.definition import MODEL, Reference, Settings, Sweep
from srdd_platform.sweep.models import Inputs
from srdd_platform.sweep.options import Request
from srdd_platform.sweep.references import ReferenceSpec, before_search, check_references
from srdd_platform.sweep.space import SearchSpace, check_space, distribution, fit_space, whole_space

Generators = Mapping[tuple[str, ...], Generator[Any]]  # by a value of each axis of models

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a sweep does, before it does any of it."""

    request: Request
    inputs: Inputs
    evaluation: EvaluationConfig
    space: SearchSpace  # what the models can vary of the sweep's space
    first: Sequence[Settings]  # params tried first, likewise
    references: Sequence[ReferenceSpec]  # rows made before the search
    bound: str  # the reference row whose multiples bound the hypervolume; "": none

    @property
    def out(self) -> Path:
        """The sweep directory."""
        return self.request.directory

    @property
    def objectives(self) -> tuple[str, ...]:
        """Columns of a row, the first one first where trials are ranked."""
        return tuple(self.request.sweep.objectives)

    @property
    def pipeline(self) -> Path:
        """The first of the models searched: real images and reconstructions are judged with it."""
        return next(iter(self.inputs.models.values()))

    @cached_property
    def extractor(self) -> str:
        """The hash of the extractor's weights."""
        return extractor_sha256(self.inputs.weights)[:16]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the rows, as ``config.json`` keeps it."""
        sweep, args = self.request.sweep, self.request.args
        digests = {key: weights_digest(model_dir(d)) for key, d in self.inputs.models.items()}
        axes = {"models": {name: list(v) for name, v in self.space.models.items()}}
        names = {" ".join(key): digest for key, digest in digests.items()}
        return {
            "sweep": sweep.name,
            "space": {
                name: json.loads(distribution_to_json(distribution(axis)))
                for name, axis in self.space.settings.items()
            },
            "base": to_dict(self.space.base),
            "first": [dict(params) for params in self.first],
            **(axes if self.space.models else {}),
            "model": names if self.space.models else digests[()],
            "others": [weights_digest(model_dir(path)) for path in self.inputs.others],
            "data": Manifest.load(self.inputs.data).fingerprint,
            "extractor": [args.extractor, self.extractor],
            "num": args.num,
            "seed": args.seed,
            "device": args.device,
            "dtype": args.dtype,
            "objectives": list(self.objectives),
            "best_rule": best_rule(self.objectives),
            "protocol": self.evaluation.protocol,
        }

    @property
    def runtime(self) -> dict[str, Any]:
        """What does not decide them."""
        return {
            "model": str(self.pipeline),
            "data": str(self.inputs.data),
            "trials": self.request.trials,
            "batch_size": self.evaluation.batch_size,
            "figures": [figure_to_dict(figure) for figure in self.request.sweep.figures],
        }


def make_plan(request: Request, inputs: Inputs, load: Load) -> Plan:
    """Hold a sweep against its models: what none can vary is left out, with a note.

    Raises:
        UserError: the space, the first settings, the references or the figures name what the
            models do not have, or a value that one of them refuses.
    """
    sweep, args = request.sweep, request.args
    generators = {key: load(directory) for key, directory in inputs.models.items()}
    space = _fitted(sweep, generators)
    names = _names(space, generators)
    first = _first(space, sweep.first)
    _check_first(space, first, generators)
    named = {inputs.models[key]: name for key, name in names.items()}
    measured = {path: load(path) for path in [*inputs.models.values(), *inputs.others]}
    evaluation = EvaluationConfig(
        data=str(inputs.data.resolve()), extractor=args.extractor,
        weights=str(inputs.weights.resolve()), num=args.num, seed=args.seed,
        batch_size=args.batch_size, device=args.device, dtype=args.dtype,
        protocol=begun_under(request.directory),
    )  # fmt: skip
    return Plan(
        request=request, inputs=inputs, evaluation=evaluation, space=space, first=first,
        references=before_search(measured, sweep.references, named),
        bound=_bound(sweep.references, space, first, next(iter(names.values()))),
    )  # fmt: skip


def check_sweep(sweep: Sweep, base: Any) -> SearchSpace:
    """Refuse what no model of a family can do, before any is trained or loaded.

    Args:
        sweep: what is searched.
        base: the sampler's settings by default.

    Returns:
        The space that the sweep names.

    Raises:
        UserError: the space, the first settings or the references name a setting that the sampler
            does not have, or a value that it refuses.
    """
    space = whole_space(sweep, base)
    check_space(space, sweep.first)
    check_references(sweep.references, type(base))
    return space


def _fitted(sweep: Sweep, generators: Generators) -> SearchSpace:
    """The sweep's space, without the settings that one of the models cannot vary.

    Raises:
        UserError: the space or the figures name what the models do not have, or a model refuses
            a value.
    """
    kinds = {type(g.sampler): g.card.family for g in generators.values()}
    if len(kinds) > 1:
        raise UserError(f"models of one family are needed, got {', '.join(kinds.values())}")
    space = check_sweep(sweep, next(iter(kinds))())
    tags = {name for generator in generators.values() for name in generator.card.tags}
    check_figures(sweep.figures, [*to_dict(space.base), *sweep.models, *tags])
    for generator in generators.values():
        space, left_out = fit_space(space, generator.check_settings)
        for name, why in left_out.items():
            logger.warning("%s is not searched: %s", name, why)
    return space


def _first(space: SearchSpace, wanted: Sequence[Settings]) -> list[Settings]:
    """The params tried first, each once, without the settings that are not searched."""
    names = {**space.models, **space.settings}
    known = [{name: v for name, v in params.items() if name in names} for params in wanted]
    return [params for i, params in enumerate(known) if params not in known[:i]]


def _check_first(space: SearchSpace, first: Sequence[Settings], generators: Generators) -> None:
    """Refuse params tried first that their model refuses.

    Raises:
        UserError: the setting is named.
    """
    for params in first:
        for key, generator in generators.items():
            if all(params.get(axis, v) == v for axis, v in zip(space.models, key, strict=True)):
                generator.check_settings(space.config(params))


def _names(space: SearchSpace, generators: Generators) -> dict[tuple[str, ...], str]:
    """The models' names, with the values of those axes that their cards do not tell apart."""
    found = {}
    for key, generator in generators.items():
        tags = generator.card.tags
        more = [v for axis, v in zip(space.models, key, strict=True) if axis not in tags]
        found[key] = " ".join([generator.card.name, *more])
    return found


def _bound(
    references: Sequence[Reference], space: SearchSpace, first: Sequence[Settings], name: str
) -> str:
    """The row of the reference whose multiples bound the hypervolume.

    That is the first one whose settings the first trial has too, measured on the first model.
    """
    if not first or not references:
        missing = "first trials" if references else "references"
        logger.info("The sweep lists no %s: there is no hypervolume", missing)
        return ""
    for reference in references:
        config = space.config(first[0])
        known = {field.name: getattr(config, field.name) for field in fields(config)}
        if all(known.get(key) == value for key, value in reference.settings.items()):
            return reference.name.replace(MODEL, name)
    logger.info("No reference has the settings of the first trial: there is no hypervolume")
    return ""
