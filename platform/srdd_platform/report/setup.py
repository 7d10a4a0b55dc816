"""What the figures read of a sweep's ``config.json``, in every form that one was written in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from srdd.errors import UserError
from srdd_platform.evaluation.rows import model_columns
from srdd_platform.report.columns import COSTS, METRICS
from srdd_platform.report.specs import Figure, Frontier, Lines, Parallel, figures_from_list

LOG_SPREAD = 30  # values further apart than this are easier to read on a logarithmic axis
OBJECTIVES = ("fid", "gflops_per_image")  # where a config.json names none
GRID_KEYS = ("cfg", "feedback", "thresholds", "refine_steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """How a sweep was set up. Settings have the values that a table's cells have."""

    figures: Sequence[Figure]
    first: Sequence[Mapping[str, Any]] = ()  # settings that were tried first
    searched: frozenset[str] | None = None  # settings and axes of models; None: not known
    logarithmic: Mapping[str, bool] = field(default_factory=dict)  # of settings with a range
    base: Mapping[str, Any] = field(default_factory=dict)  # the sampler's settings by default
    hypervolume_reference: Any = None  # unchecked: see report/hypervolume.py
    objectives: Sequence[str] = OBJECTIVES  # columns; the best trial is the best in the first
    best_rule: str = "lowest FID"

    def varies(self, name: str) -> bool:
        """Whether the sweep varies a setting, or an axis of models, as far as is known."""
        return self.searched is None or name in self.searched

    def is_log(self, name: str, values: Sequence[Any]) -> bool:
        """Whether a setting's axis is logarithmic: as it was searched, else by its values."""
        given = [value for value in values if value is not None]
        if name in self.logarithmic or not given:
            return self.logarithmic.get(name, False)
        if any(isinstance(value, str | bool) for value in given):
            return False
        return bool(max(given) >= LOG_SPREAD * min(given) > 0)

    def null_is_a_value(self, name: str) -> bool:
        """Whether a null in the column of a setting is its value, not that it is inactive."""
        return name in self.base and self.base[name] is None

    def null_text(self, name: str) -> str:
        """What a null means in the column of a setting."""
        return "default" if self.null_is_a_value(name) else "inactive"

    def model_columns(self, row: Mapping[str, Any]) -> list[str]:
        """The columns of a row that tell models apart; none where the base is not known."""
        return [name for name in model_columns(row) if self.base and name not in self.base]


def read_setup(config: Mapping[str, Any]) -> Setup:
    """The set-up that a configuration describes.

    Raises:
        UserError: ``figures`` or ``grid`` has another form than a sweep writes.
    """
    found = {name: value for part in _parts(config) for name, value in part.items()}
    first = found.get("first")
    figures: Sequence[Figure] = (Frontier(), Parallel())
    if found.get("grid"):
        first, lines = _of_grid(found["grid"])
        figures = (Frontier(), lines, Parallel())
    if "figures" in found:
        figures = figures_from_list(found["figures"], "figures in config.json")
    space, models = (_object(found.get(name)) for name in ("space", "models"))
    axes = {**space, **models}
    ranges = {name: ends for name, axis in axes.items() if (ends := _range(axis))}
    return Setup(
        figures=figures,
        first=[_cells(_object(one)) for one in first] if isinstance(first, list) else [],
        searched=frozenset(axes) if axes else None,
        logarithmic={name: bool(ends.get("log")) for name, ends in ranges.items()},
        base=_cells(_object(found.get("base"))),
        hypervolume_reference=found.get("hypervolume_reference"),
        objectives=_objectives(found.get("objectives")),
        best_rule=str(found.get("best_rule") or "lowest FID"),
    )


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What does not decide a sweep's rows, what does, and what was noted on the way."""
    return [*(_object(config.get(name)) for name in ("runtime", "settings")), config]


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _of_grid(grid: Any) -> tuple[list[dict[str, Any]], Lines]:
    """The first settings and the figure of a sweep that was begun before sweeps list them."""
    if not isinstance(grid, dict) or any(key not in grid for key in GRID_KEYS):
        raise UserError(f"grid in config.json must have {', '.join(GRID_KEYS)}")
    for key in ("thresholds", "refine_steps"):
        if not isinstance(grid[key], list):
            raise UserError(f"grid in config.json: {key} must be a list, got {grid[key]!r}")
    fixed = {"cfg": grid["cfg"], "feedback": grid["feedback"]}
    first = [
        {**fixed, "resample_threshold": threshold, "refine_steps": steps}
        for steps, threshold in product(grid["refine_steps"], grid["thresholds"])
    ]
    return first, Lines(x="resample_threshold", series="refine_steps", fixed=fixed)


def _range(axis: Any) -> dict[str, Any] | None:
    """The ends of an axis of numbers, as Optuna writes a distribution or with no name around it."""
    ends = axis.get("attributes", axis) if isinstance(axis, dict) else None
    return ends if isinstance(ends, dict) and "low" in ends else None


def cell_value(value: Any) -> Any:
    """A setting's value as a table has it: a list is text."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _cells(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cell_value(value) for name, value in settings.items()}


def _objectives(names: Any) -> Sequence[str]:
    known = {**METRICS, **COSTS}
    listed = names if isinstance(names, list) else []
    return [name for name in listed if isinstance(name, str) and name in known] or OBJECTIVES
