"""The figures of a sweep's page, as values: a sweep lists them, its config.json keeps the list.

``config.json`` holds one object a figure, by its kind::

    [{"kind": "frontier"}, {"kind": "lines", "x": "cfg"}, {"kind": "parallel"}]

A field that has its default is left out. This module imports neither torch nor pandas nor Plotly,
so that a sweep's script can name its figures and still print its help at once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, get_args

from srdd.errors import UserError
from srdd.validation import from_dict, require
from srdd_platform.report.columns import COSTS, METRICS


def _check_objectives(metric: str, cost: str | None) -> None:
    require(metric in [*METRICS], "metric", metric, f"one of {', '.join(METRICS)}")
    require(cost in [None, *COSTS], "cost", cost, f"null or one of {', '.join(COSTS)}")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """A metric against a cost: the trials, those that no other beats in both, the references."""

    kind: ClassVar[str] = "frontier"
    metric: str = "fid"  # a column of the table
    cost: str | None = None  # a column; None draws GFLOPs and latency, where the trials have them

    def __post_init__(self) -> None:
        _check_objectives(self.metric, self.cost)

    def settings(self) -> tuple[str, ...]:
        """The settings that the figure names."""
        return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """A metric against one setting, a line for each value of another."""

    kind: ClassVar[str] = "lines"
    x: str  # a setting, or a column that tells models apart ("mask")
    series: str | None = None  # likewise; None draws one line
    fixed: Mapping[str, Any] = field(default_factory=dict)  # settings that all points share
    metric: str = "fid"

    def __post_init__(self) -> None:
        _check_objectives(self.metric, None)
        require(_is_name(self.x), "x", self.x, "the name of a setting")
        named = self.series is None or _is_name(self.series)
        require(named, "series", self.series, "null or the name of a setting")
        require(isinstance(self.fixed, Mapping), "fixed", self.fixed, "settings with their values")
        require(self.series != self.x, "series", self.series, "another setting than x")
        for name, value in self.fixed.items():
            require(name not in (self.x, self.series), "fixed", name, "neither x nor series")
            plain = value is None or isinstance(value, str | int | float | list | tuple)
            require(plain, "fixed", value, "settings with their values")

    def settings(self) -> tuple[str, ...]:
        """The settings that the figure names."""
        return (self.x, *([] if self.series is None else [self.series]), *self.fixed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallel:
    """Each trial as a line over the settings that vary, a cost and a metric."""

    kind: ClassVar[str] = "parallel"
    metric: str = "fid"
    cost: str | None = None  # None takes GFLOPs, or latency where no trial has them

    def __post_init__(self) -> None:
        _check_objectives(self.metric, self.cost)

    def settings(self) -> tuple[str, ...]:
        """The settings that the figure names."""
        return ()


Figure = Frontier | Lines | Parallel
KINDS: dict[str, type[Figure]] = {kind.kind: kind for kind in get_args(Figure)}


def figure_to_dict(figure: Figure) -> dict[str, Any]:
    """A figure as JSON values."""
    values: dict[str, Any] = {"kind": figure.kind}
    for one in fields(figure):
        value = getattr(figure, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if value != default:
            values[one.name] = dict(value) if isinstance(value, Mapping) else value
    return values


def figure_from_dict(values: Any, where: str = "figures") -> Figure:
    """A figure of JSON values.

    Raises:
        UserError: the kind or a field is unknown, or a value does not fit; it is named.
    """
    kind = values.get("kind") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{where}: a figure's kind must be one of {', '.join(KINDS)}, got {kind!r}")
    rest = {name: value for name, value in values.items() if name != "kind"}
    return from_dict(KINDS[kind], rest, f"{where}: {kind}")


def figures_from_list(values: Any, where: str = "figures") -> list[Figure]:
    """The figures that a config.json lists.

    Raises:
        UserError: it is not a list, or :func:`figure_from_dict` refuses one of them.
    """
    if not isinstance(values, list):
        raise UserError(f"{where} must be a list of figures, got {values!r}")
    return [figure_from_dict(one, where) for one in values]


def check_figures(figures: Sequence[Figure], settings: Collection[str]) -> None:
    """Refuse figures that name a setting which the sweep does not have.

    Args:
        figures: those of a sweep.
        settings: the settings of its sampler and the axes of its models.

    Raises:
        UserError: the figure and the setting are named.
    """
    for figure in figures:
        for name in figure.settings():
            if name not in settings:
                raise UserError(f"figures: {figure.kind}: unknown setting {name!r}; the sweep has "
                                f"{', '.join(settings)}")  # fmt: skip
