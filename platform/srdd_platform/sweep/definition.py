"""A sweep as a value: what is searched, tried first, compared with, and drawn.

A script in ``sweeps/`` is one :class:`Sweep` and a main. This module imports no library, so that
such a script answers ``--help`` at once; :mod:`srdd_platform.sweep.space` gives the axes to Optuna.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product as combinations
from typing import Any

from srdd.errors import UserError
from srdd_platform.report.columns import COSTS, METRICS
from srdd_platform.report.specs import Figure, Frontier, Parallel

MODEL = "{model}"  # in a reference's name: stands for the name of the model measured


@dataclass(frozen=True, slots=True)
class Float:
    """A number between two ends, both included."""

    low: float
    high: float
    log: bool = False  # searched evenly in its logarithm
    step: float | None = None  # multiples of it, from ``low`` on

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, self.step, log=self.log)
        for name in ("low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True, slots=True)
class Int:
    """An integer between two ends, both included."""

    low: int
    high: int
    log: bool = False  # searched evenly in its logarithm
    step: int = 1

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, None if self.step == 1 else self.step, log=self.log)


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of some values."""

    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.choices:
            raise UserError("Categorical needs at least one choice")


Axis = Float | Int | Categorical
Settings = Mapping[str, Any]  # sampler settings by name; those not named are as by default


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A sampler setting that the trials are compared with: a row, measured before the search."""

    name: str  # of the row; :data:`MODEL` in it becomes the model's name
    settings: Settings
    every_model: bool = True  # a row for each model of the sweep, or for the searched one alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """One sweep. It names settings, columns and models, and has no object of any of them."""

    name: str  # of its directory
    space: Mapping[str, Axis]  # by the sampler setting's name; any setting of the model's family
    first: Sequence[Settings] = ()  # tried first; a setting not named is drawn
    references: Sequence[Reference] = ()  # those that a model cannot take are left out
    figures: Sequence[Figure] = (Frontier(), Parallel())  # of the report, in this order
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """An axis of models by its name in :data:`srdd_platform.sweep.axes.AXES`, and its values.

    A trial is then a model and settings. Empty: one model is searched.
    """
    objectives: Sequence[str] = ("fid", "gflops_per_image")
    """Columns of a row. Each is searched for low or for high values, whichever is better."""
    trials: int = 24  # distinct rows, where the command line gives no number

    def __post_init__(self) -> None:
        self._check_lists()
        known = (*METRICS, *COSTS)
        for name in self.objectives:
            if name not in known:
                raise UserError(
                    f"objectives: unknown objective {name!r}; there are {', '.join(known)}"
                )
        if not self.objectives:
            raise UserError("objectives: a sweep needs at least one objective")
        if self.trials < 1:
            raise UserError(f"trials must be positive, got {self.trials}")
        if shared := sorted(self.space.keys() & self.models.keys()):
            raise UserError(f"{shared[0]!r} is both a setting of the space and an axis of models")
        for axis, values in self.models.items():
            texts = not isinstance(values, str) and all(isinstance(value, str) for value in values)
            if not texts or len(set(values)) < len(values) or not values:
                raise UserError(f"models: {axis} needs a list of distinct texts, got {values!r}")

    def _check_lists(self) -> None:
        """Refuse an entry of another kind, such as a dictionary in place of a reference.

        Raises:
            UserError: the field is named.
        """
        kinds: dict[str, tuple[str, Any]] = {
            "first": ("a dictionary of settings", Mapping),
            "references": ("a Reference", Reference),
            "figures": ("a Frontier, Lines or Parallel", Figure),
            "objectives": ("the name of a column", str),
        }
        for name, (what, kind) in kinds.items():
            entries = getattr(self, name)
            if isinstance(entries, Mapping | str):
                raise UserError(f"{name} must be a list, got {entries!r}")
            for entry in entries:
                if not isinstance(entry, kind):
                    raise UserError(f"{name}: {what} is needed, got {entry!r}")


def _check_range(low: float, high: float, step: float | None, *, log: bool) -> None:
    """Refuse a range without a value, or that cannot be searched as it says.

    Raises:
        UserError: it is empty, has a step that is not positive, or has a logarithm it cannot have.
    """
    if not low <= high:
        raise UserError(f"a range needs low <= high, got {low} and {high}")
    if step is not None and step <= 0:
        raise UserError(f"a range needs a positive step, got {step}")
    if log and (low <= 0 or step is not None):
        raise UserError("a logarithmic range needs low above 0 and no step")


def product(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Each combination of values, by name; the last name's values change fastest."""
    return [dict(zip(axes, values, strict=True)) for values in combinations(*axes.values())]


def plain(*, cfg: Sequence[float]) -> list[Reference]:
    """Each model without refinement, at some guidance weights."""
    return [
        Reference(name=f"plain {MODEL}, cfg {weight:g}", settings={"cfg": weight}) for weight in cfg
    ]


def epsilon(*epsilons: float, cfg: float) -> list[Reference]:
    """Truncation that never draws codes less likely than epsilon, and costs no further pass."""
    return [
        Reference(
            name=f"epsilon-truncation {threshold:g}, cfg {cfg:g}",
            settings={"cfg": cfg, "epsilon": threshold}, every_model=False,
        )
        for threshold in epsilons
    ]  # fmt: skip
