"""The figures of a page as HTML: a section for the trials that were measured alike."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import plotly.graph_objects as go
import plotly.io

from srdd_platform.report.columns import COSTS, METRICS
from srdd_platform.report.data import Protocol, SweepData, protocol_of
from srdd_platform.report.figures import draw_frontier, draw_lines, draw_parallel
from srdd_platform.report.frontier import CostAxis, cost_axes, frontier_info, hypervolume_text
from srdd_platform.report.lines import lines_info
from srdd_platform.report.parallel import parallel_info
from srdd_platform.report.setup import Setup
from srdd_platform.report.specs import Frontier, Lines, Parallel
from srdd_platform.report.tables import Table, table
from srdd_platform.report.wording import Record, fingerprint_text


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One drawing as HTML, with what is said beside it."""

    title: str = ""  # in the list to choose from
    drawing: str = ""
    table: Table | None = None
    hypervolume: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A figure of the page: a view, or several to choose from, or the reason why there is none."""

    kind: str
    name: str  # of its elements: its kind, with a number from the second of a kind on
    title: str
    hint: str
    views: list[View]
    missing: str = ""  # why there is no view


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """The figures of the trials that were measured alike."""

    protocol: Protocol
    figures: list[Drawn]


def section(sweep: SweepData, protocol: Protocol, index: int, searched: Iterable[str]) -> Section:
    """The figures over one protocol's trials and the references they may be seen beside.

    Args:
        sweep: its directory as read.
        protocol: of the trials.
        index: of the section on the page.
        searched: the settings that tables have a column for.
    """
    rows = [row for row in sweep.rows if row["kind"] == "reference" or protocol_of(row) == protocol]
    figures, seen = [], Counter[str]()
    for figure in sweep.setup.figures:
        seen[figure.kind] += 1
        number = seen[figure.kind]
        name = figure.kind if number == 1 else f"{figure.kind}{number}"
        if isinstance(figure, Frontier):
            drawn = _frontier(figure, rows, sweep.setup, (name, index), list(searched))
        elif isinstance(figure, Lines):
            drawn = _lines(figure, rows, sweep.setup, (name, index))
        else:
            drawn = _parallel(figure, rows, sweep.setup, (name, index))
        figures.append(drawn)
    return Section(protocol=protocol, figures=figures)


def _frontier(
    figure: Frontier, rows: list[Record], setup: Setup, place: tuple[str, int], searched: list[str]
) -> Drawn:
    """The frontier over each cost that the trials have."""
    metric = METRICS[figure.metric]
    cost = "cost" if figure.cost is None else COSTS[figure.cost].title
    views = []
    for number, axis in enumerate(cost_axes(rows, figure.cost, figure.metric)):
        info = frontier_info(_measured_there(rows, axis), axis, setup, figure.metric)
        view = View(
            title=axis.title,
            drawing=draw(draw_frontier(info), f"{place[0]}-{place[1]}-{number}"),
            table=table(info.frontier, searched),
            hypervolume=hypervolume_text(info),
            notes=info.notes,
        )
        views.append(view)
    up = "Upper" if metric.higher_is_better else "Lower"
    side = "right" if figure.cost and COSTS[figure.cost].higher_is_better else "left"
    lacking = "a cost" if figure.cost is None else cost
    lacking += "" if figure.metric == "fid" else f" and {metric.title}"
    return Drawn(
        kind=figure.kind,
        name=place[0],
        title=f"Frontier: {metric.title} against {cost}",
        hint=f"{up} {side} is better. Click a point, or a row of a table, to see its samples.",
        views=views,
        missing=f"No finished trial has {lacking}: no frontier.",
    )


def _measured_there(rows: list[Record], axis: CostAxis) -> list[Record]:
    """The references, and the trials that a figure of one device and dtype can show."""
    return [
        row
        for row in rows
        if row["kind"] == "reference" or axis.fingerprint in (None, fingerprint_text(row))
    ]


def _lines(figure: Lines, rows: list[Record], setup: Setup, place: tuple[str, int]) -> Drawn:
    """The lines over one setting; without a drawing where no trial is on the figure."""
    info = lines_info(rows, figure, setup)
    drawing = draw(draw_lines(info), "-".join(map(str, place))) if info.lines or info.others else ""
    view = View(drawing=drawing, notes=info.notes)
    return Drawn(kind=figure.kind, name=place[0], title=info.title, hint="", views=[view])


def _parallel(figure: Parallel, rows: list[Record], setup: Setup, place: tuple[str, int]) -> Drawn:
    """The parallel coordinates, where there are trials to compare."""
    info = parallel_info(rows, figure, setup)
    metric = METRICS[figure.metric]
    best, worst = ("highest", "lowest") if metric.higher_is_better else ("lowest", "highest")
    several = len(info.rows) > 1
    view = View(drawing=draw(draw_parallel(info), "-".join(map(str, place))) if several else "")
    return Drawn(
        kind=figure.kind,
        name=place[0],
        title="All settings" if figure.metric == "fid" else f"All settings and {metric.title}",
        hint=f"A line a trial, blue the {best} {metric.title}, orange the {worst}; “inactive” is a "
        "setting that the trial does not use.",
        views=[view] if several else [],
        missing="One finished trial: nothing to compare.",
    )


def draw(figure: go.Figure, name: str) -> str:
    """A figure as a fragment that finds plotly.js loaded by the page."""
    config = {"responsive": True, "displayModeBar": False, "plotlyServerURL": ""}  # no cloud
    fragment: str = plotly.io.to_html(
        figure, config=config, include_plotlyjs=False, full_html=False, div_id=name
    )
    return fragment
