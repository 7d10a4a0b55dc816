"""The facts of lines: a metric against one setting, a line for each value of another."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from srdd_platform.evaluation.rows import model_columns
from srdd_platform.report.columns import METRICS
from srdd_platform.report.data import (
    Protocol,
    equal,
    one_protocol,
    protocol_of,
    seen_values,
    usable,
)
from srdd_platform.report.setup import Setup, cell_value
from srdd_platform.report.specs import Lines
from srdd_platform.report.wording import Record, number, short_name

Settings = Mapping[str, Any]  # as the cells of a table
Point = tuple[Any, Any]  # a value of x and of the series


@dataclass(frozen=True, kw_only=True, slots=True)
class LinesInfo:
    """A metric against one setting, for trials that compare."""

    protocol: Protocol
    figure: Lines  # what is drawn
    fixed: Settings  # what all points share: as in the figure, or what the trials have
    log: bool  # whether the axis of x is logarithmic
    listed: bool  # whether the lines are the settings that the sweep lists as its first
    lines: dict[Any, list[Record]]  # value of the series -> rows by x; None where none is active
    others: list[Record]  # the same fixed settings, on no line
    levels: list[Record]  # rows in which x is inactive, alike in all else
    notes: list[str]

    @property
    def title(self) -> str:
        """What is drawn."""
        title = METRICS[self.figure.metric].title
        return f"{title} against {short_name(self.figure.x)}{_at(self.fixed)}"


def _at(settings: Settings) -> str:
    texts = [f"{name} {number(value) or 'none'}" for name, value in settings.items()]
    return f" at {', '.join(texts)}" if texts else ""


def lines_info(rows: Iterable[Record], figure: Lines, setup: Setup) -> LinesInfo:
    """The lines that a figure draws of a sweep's rows.

    On them are the finished trials at the sweep's first settings, or all trials where those do
    not vary x, that agree in all settings beside x and the series: the largest such set.

    Raises:
        UserError: no trial has finished, or they were not measured alike.
    """
    rows = list(rows)
    protocol = one_protocol(rows)
    trials = usable(rows, "trial", figure.metric)
    fixed = _fixed(figure, setup, trials)
    active = [r for r in trials if _agree(r, fixed, setup) and r.get(figure.x) is not None]
    log = setup.is_log(figure.x, [row[figure.x] for row in active])
    drawn = [row for row in active if not log or row[figure.x] > 0]
    points = _points(figure, fixed, setup)
    on_points = [row for row in drawn if not points or _is_at(row, points, figure)]
    common = _most_common(on_points, {figure.x, figure.series, *fixed})
    chosen = [row for row in on_points if _agree(row, common, setup)]
    keys = {row["key"] for row in chosen}
    levels = _levels(rows, protocol, figure, {**fixed, **common}, setup)
    notes = [] if drawn else [f"No finished trial{_at(fixed)} has {figure.x}: no figure."]
    notes += _unplaced(len(active) - len(drawn), figure)
    notes += _missing(points, chosen, levels, figure)
    return LinesInfo(
        protocol=protocol,
        figure=figure,
        fixed=fixed,
        log=log,
        listed=bool(points),
        lines=_by_series(chosen, figure),
        others=[row for row in drawn if row["key"] not in keys],
        levels=levels,
        notes=notes if levels else [*notes, *_no_level(rows, chosen, figure, fixed)],
    )


def _fixed(figure: Lines, setup: Setup, trials: list[Record]) -> dict[str, Any]:
    """The settings that all points share: where the sweep does not vary one, the trials' value."""
    fixed = {name: cell_value(value) for name, value in figure.fixed.items()}
    for name in fixed:
        seen = seen_values(trials, name) if trials and name in trials[0] else []
        if not setup.varies(name) and len(seen) == 1:
            fixed[name] = seen[0]
    return fixed


def _agree(row: Settings, wanted: Settings, setup: Setup) -> bool:
    """Whether a row has the settings wanted; those that are inactive in it agree.

    The active settings decide which others are inactive, so that rows which differ there differ
    in an active one too.
    """
    return all(
        equal(row.get(name), value) or (row.get(name) is None and not setup.null_is_a_value(name))
        for name, value in wanted.items()
    )


def _points(figure: Lines, fixed: Settings, setup: Setup) -> list[Point]:
    """The points of the figure among the sweep's first settings."""
    named = [name for name in (figure.x, figure.series) if name is not None]
    first = [one for one in setup.first if all(one.get(name) is not None for name in named)]
    return list(dict.fromkeys(_point(one, figure) for one in first if _agree(one, fixed, setup)))


def _point(row: Settings, figure: Lines) -> Point:
    return row.get(figure.x), None if figure.series is None else row.get(figure.series)


def _is_at(row: Record, points: Iterable[Point], figure: Lines) -> bool:
    """Whether a row is at a point; one in which the series is inactive is on each line."""
    x, series = _point(row, figure)
    return any(equal(x, one) and (series is None or equal(series, other)) for one, other in points)


def _most_common(rows: list[Record], own: set[str | None]) -> dict[str, Any]:
    """The other settings that most rows have; of equally many, those with more active ones."""
    rest = [{name: row[name] for name in model_columns(row) if name not in own} for row in rows]
    found = Counter(tuple(one.items()) for one in rest)

    def rank(settings: dict[str, Any]) -> tuple[int, int]:
        active = sum(value is not None for value in settings.values())
        return found[tuple(settings.items())], active

    return max(rest, key=rank, default={})


def _by_series(rows: list[Record], figure: Lines) -> dict[Any, list[Record]]:
    """Rows by their value of the series, each in the order of x.

    A row in which the series is inactive is on each line, or on one of its own without any.
    """
    ordered = sorted(rows, key=lambda row: (row[figure.x], row["key"]))
    values = sorted({_point(row, figure)[1] for row in rows} - {None})
    return {
        value: [row for row in ordered if _point(row, figure)[1] in (None, value)]
        for value in values or [None] * bool(rows)
    }


def _levels(
    rows: list[Record], protocol: Protocol, figure: Lines, wanted: Settings, setup: Setup
) -> list[Record]:
    """The rows in which x is inactive and all else agrees, one for each value of the series.

    A trial comes before a reference row, which must be called plain.
    """
    trials, references = (usable(rows, kind, figure.metric) for kind in ("trial", "reference"))
    plain = [row for row in references if "plain" in row["name"].lower()]
    found: dict[Any, Record] = {}
    if not setup.null_is_a_value(figure.x):
        for row in [*trials, *plain]:
            alike = protocol_of(row) == protocol and _agree(row, wanted, setup)
            if row.get(figure.x) is None and alike:
                found.setdefault(_point(row, figure)[1], row)
    return list(found.values())


def _unplaced(count: int, figure: Lines) -> list[str]:
    text = f"at {short_name(figure.x)} 0 have no place on a log axis; the tables have them."
    return [f"{count} {text}"] if count else []


def _missing(
    points: list[Point], chosen: list[Record], levels: list[Record], figure: Lines
) -> list[str]:
    """How many of the first settings have no point; where x is inactive a level stands for them."""
    level = [_point(row, figure)[1] for row in levels]
    wanted = [(x, series) for x, series in points if figure.series is None or series not in level]
    count = sum(not any(_is_at(row, [point], figure) for row in chosen) for point in wanted)
    return [f"{count} of the grid's {len(wanted)} settings have no {METRICS[figure.metric].title} "
            "here."] if count else []  # fmt: skip


def _no_level(
    rows: list[Record], chosen: list[Record], figure: Lines, fixed: Settings
) -> list[str]:
    """Say that no row is a level, where a value of the series makes x inactive."""
    on_lines = {_point(row, figure)[1] for row in chosen}
    without = {_point(row, figure)[1] for row in rows if row.get(figure.x) is None}
    possible = without - on_lines - {None}
    return [f"No row without {figure.x} was measured{_at(fixed)}."] if possible else []
