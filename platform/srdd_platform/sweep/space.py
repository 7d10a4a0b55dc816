"""A search space over sampler settings: Optuna distributions by the setting's name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from srdd.errors import UserError
from srdd.validation import from_dict
from srdd.var.config import SamplerConfig
from srdd_platform.core.files import digest

Space = Mapping[str, BaseDistribution]
REFINING = ("resample", "resample_threshold", "feedback")  # mean nothing without refinement


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Trials made first, so that the figures have their lines."""

    cfg: float
    feedback: str
    thresholds: tuple[float, ...]
    refine_steps: tuple[int, ...]

    def settings(self) -> list[dict[str, Any]]:
        """The settings of the grid."""
        return [
            {
                "cfg": self.cfg, "feedback": self.feedback,
                "resample_threshold": threshold, "refine_steps": steps,
            }
            for steps in self.refine_steps
            for threshold in self.thresholds
        ]  # fmt: skip


def check_space(space: Space, base: SamplerConfig, first: Sequence[Mapping[str, Any]] = ()) -> None:
    """Refuse a search space that names unknown settings or leaves a setting's range.

    Args:
        space: the settings searched.
        base: what the space leaves alone.
        first: settings tried first; they must lie in the space.

    Raises:
        UserError: the setting is named, with what is allowed.
    """
    known = [field.name for field in fields(SamplerConfig)]
    for name in space:
        if name not in known:
            raise UserError(
                f"unknown setting {name!r} in the search space; the sampler has {', '.join(known)}"
            )
    for end in extremes(space):
        setting(base, end)
    if base.refine_steps == 0 and "refine_steps" not in space and set(space) & set(REFINING):
        raise UserError("the search space varies refinement, but refine_steps is 0: add it")
    for params in first:
        for name, value in params.items():
            if name not in space or not contains(space[name], value):
                raise UserError(f"grid: {name} {value!r} lies outside the search space")


def extremes(space: Space) -> list[dict[str, Any]]:
    """Each setting at the ends of its range, or at each of its choices, one at a time."""
    found: list[dict[str, Any]] = []
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            found += [{name: choice} for choice in distribution.choices]
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            found += [{name: distribution.low}, {name: distribution.high}]
        else:
            raise UserError(f"{name}: a distribution of optuna.distributions is needed")
    return found


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value can be drawn from a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return any(value == choice for choice in distribution.choices)
    return distribution._contains(value)


def suggest(trial: optuna.Trial, space: Space) -> None:
    """Draw a setting; what is inactive without refinement is not drawn."""
    refining = True
    for name in sorted(space, key=lambda name: name in REFINING):
        if name in REFINING and not refining:
            continue
        distribution = space[name]
        if isinstance(distribution, CategoricalDistribution):
            value: Any = trial.suggest_categorical(name, distribution.choices)
        elif isinstance(distribution, IntDistribution):
            value = trial.suggest_int(
                name, distribution.low, distribution.high,
                step=distribution.step, log=distribution.log,
            )  # fmt: skip
        else:
            assert isinstance(distribution, FloatDistribution)
            value = trial.suggest_float(
                name, distribution.low, distribution.high,
                step=distribution.step, log=distribution.log,
            )  # fmt: skip
        if name == "refine_steps":
            refining = value > 0


def setting(base: SamplerConfig, params: Mapping[str, Any]) -> SamplerConfig:
    """The configuration that a suggestion means."""
    return from_dict(SamplerConfig, {**asdict(base), **params}, "search space")


def active_key(config: SamplerConfig) -> str:
    """Equal for configurations that differ in an inactive setting only."""
    return digest(config.active())
