"""What a search draws: a model, where a sweep has an axis of them, and settings of its sampler."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
from srdd_platform.core.files import digest
from srdd_platform.evaluation.rows import settings_of
from srdd_platform.sweep.definition import Axis, Categorical, Float, Int, Settings, Sweep

# A study in memory takes any value as a choice, such as a tuple of scales; Optuna warns of others.
warnings.filterwarnings("ignore", message="Choices for a categorical distribution")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """The axes of a search. ``params`` below are values by axis, of models and of settings."""

    settings: Mapping[str, Axis]  # by the setting's name
    base: Any  # settings of the sampler: the values that the space does not draw
    models: Mapping[str, tuple[str, ...]]  # by the axis's name; without one a sweep has one model

    def model(self, params: Settings) -> tuple[str, ...]:
        """The model that some params name: a value of each axis of models."""
        return tuple(params[axis] for axis in self.models)

    def config(self, params: Settings) -> Any:
        """The sampler's settings that some params mean."""
        return self._with({name: v for name, v in params.items() if name not in self.models})

    def key(self, params: Settings) -> str:
        """Equal for params that mean the same model and differ in inactive settings alone."""
        active = self.config(params).active()
        return digest([active, *self.model(params)] if self.models else active)

    def params_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The params of a row: its model, and all of its active settings."""
        named = {axis: row[axis] for axis in self.models}
        return named | settings_of(row, type(self.base))

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each axis."""
        models = {name: CategoricalDistribution(values) for name, values in self.models.items()}
        return models | {name: distribution(axis) for name, axis in self.settings.items()}

    def contains(self, name: str, value: Any) -> bool:
        """Whether an axis can have a value."""
        return contains(self._axis(name), value)

    def suggest(self, trial: optuna.Trial) -> None:
        """Draw a model and those settings that are active: no inactive one reaches Optuna."""
        for name in self.models:
            _draw(trial, name, self._axis(name))
        chosen: dict[str, Any] = {}
        while names := self._next(chosen):
            for name in names:
                chosen[name] = _draw(trial, name, self.settings[name])

    def _next(self, chosen: Settings) -> list[str]:
        """The settings to draw after those chosen.

        They are active under the choices so far, whatever the settings not drawn yet will be: a
        setting that can make others inactive is drawn before them. Where settings make each other
        inactive the first one goes first.
        """
        config = self._with(chosen)
        known = config.active()
        active = [name for name in self.settings if name in known and name not in chosen]
        lasting = set(active)
        for name in active:  # an inactive setting bears on nothing, not even on the others
            for value in ends(self.settings[name]):
                lasting &= {name, *replace(config, **{name: value}).active()}
        return [name for name in active if name in lasting] or active[:1]

    def _axis(self, name: str) -> Axis:
        return Categorical(self.models[name]) if name in self.models else self.settings[name]

    def _with(self, settings: Settings) -> Any:
        known = {field.name: getattr(self.base, field.name) for field in fields(self.base)}
        return from_dict(type(self.base), {**known, **settings}, "search space")


def whole_space(sweep: Sweep, base: Any) -> SearchSpace:
    """All that a sweep names, with the settings of a sampler that say the rest."""
    models = {axis: tuple(values) for axis, values in sweep.models.items()}
    return SearchSpace(settings=dict(sweep.space), base=base, models=models)


def distribution(axis: Axis) -> BaseDistribution:
    """An axis as Optuna takes it."""
    if isinstance(axis, Categorical):
        return CategoricalDistribution(axis.choices)
    if isinstance(axis, Int):
        return IntDistribution(axis.low, axis.high, log=axis.log, step=axis.step)
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def _draw(trial: optuna.Trial, name: str, axis: Axis) -> Any:
    """Let Optuna choose a value of an axis."""
    if isinstance(axis, Categorical):
        return trial.suggest_categorical(name, axis.choices)
    if isinstance(axis, Int):
        return trial.suggest_int(name, axis.low, axis.high, step=axis.step, log=axis.log)
    return trial.suggest_float(name, axis.low, axis.high, step=axis.step, log=axis.log)


def contains(axis: Axis, value: Any) -> bool:
    """Whether a value can be drawn from an axis."""
    if isinstance(axis, Categorical):
        return any(value == choice for choice in axis.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not axis.low <= value <= axis.high:
        return False
    steps = (value - axis.low) / axis.step if axis.step else 0.0
    return abs(steps - round(steps)) < 1e-8


def ends(axis: Axis) -> tuple[Any, ...]:
    """The ends of an axis, or all its choices."""
    return axis.choices if isinstance(axis, Categorical) else (axis.low, axis.high)


def check_space(space: SearchSpace, first: Sequence[Settings] = ()) -> None:
    """Refuse a search space whose axes are not settings of the sampler, or leave their ranges.

    Args:
        space: what is searched.
        first: params tried first; they must be in the space, and need not be complete.

    Raises:
        UserError: the setting is named, with what is allowed.
    """
    known = [field.name for field in fields(space.base)]
    for name, axis in space.settings.items():
        if name not in known:
            raise UserError(
                f"unknown setting {name!r} in the search space; the sampler has {', '.join(known)}"
            )
        if not isinstance(axis, Axis):
            raise UserError(f"{name}: an axis must be Float, Int or Categorical, got {axis!r}")
        for value in ends(axis):
            space.config({name: value})
    for name in space.settings:
        if name not in _reachable(space):
            raise UserError(
                f"the search space varies {name}, which has no effect there: add a setting that "
                "makes it active"
            )
    for params in first:
        for name, value in params.items():
            axes = {**space.models, **space.settings}
            if name not in axes:
                raise UserError(f"first: the space has no {name}; it has {', '.join(axes)}")
            if not space.contains(name, value):
                raise UserError(f"first: {name} {value!r} is outside the search space")


def _reachable(space: SearchSpace) -> set[str]:
    """The settings that are active for some values of the others."""
    contexts = [space.base]
    found = set(space.base.active())
    for context in contexts:  # grows: by one context for each that makes another setting active
        for name in found & space.settings.keys():
            for value in ends(space.settings[name]):
                config = replace(context, **{name: value})
                if not found.issuperset(config.active()):
                    found |= config.active().keys()
                    contexts.append(config)
    return found


def fit_space(
    space: SearchSpace, check: Callable[[Any], None]
) -> tuple[SearchSpace, dict[str, str]]:
    """The space without the settings that a model cannot vary.

    Args:
        space: what is searched.
        check: refuses settings that do not fit the model, by a :class:`UserError`.

    Returns:
        The space, and why settings are left out, by name.

    Raises:
        UserError: the model takes some values of an axis and refuses others, or refuses the base.
    """
    check(space.base)
    left_out: dict[str, str] = {}
    for name, axis in space.settings.items():
        values = [v for v in _probes(axis) if v != getattr(space.base, name)]
        errors = [error for value in values if (error := _refusal(space, check, name, value))]
        if errors and len(errors) < len(values):
            raise errors[0]
        if errors:
            left_out[name] = str(errors[0])
    kept = {name: axis for name, axis in space.settings.items() if name not in left_out}
    return replace(space, settings=kept), left_out


def _refusal(
    space: SearchSpace, check: Callable[[Any], None], name: str, value: Any
) -> UserError | None:
    """Why a model refuses a value of a setting; None where it takes it."""
    try:
        check(space.config({name: value}))
    except UserError as error:
        return error
    return None


def _probes(axis: Axis) -> Iterator[Any]:
    """Values that show whether a model can vary a setting: the ends, and one next to the lower."""
    yield from ends(axis)
    if isinstance(axis, Int):
        yield min(axis.low + axis.step, axis.high)
    elif isinstance(axis, Float):
        yield min(axis.low + (axis.step or (axis.high - axis.low) / 1000), axis.high)
