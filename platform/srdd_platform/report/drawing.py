"""What the figures share: colours and symbols, points, levels, and the axis of a metric."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from srdd_platform.report.columns import METRICS, better_sign
from srdd_platform.report.wording import Record, facts, label, number, of_extractor

# Okabe and Ito's colours, told apart with any colour vision; each line has its own symbol too
PALETTE = ("#2f86c1", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#7b6fd0", "#56b4e9", "#8a8a8a")
SYMBOLS = ("square", "diamond", "triangle-up", "star", "x", "hexagon", "triangle-down", "cross")
DASHES = ("dash", "dot", "dashdot", "longdash")
GREY = PALETTE[7]
GRID_COLOUR = "rgba(128,128,128,0.22)"


def hover(row: Record) -> str:
    """All that is known of a row, escaped: Plotly reads a subset of HTML in hover text."""
    lines = [f"<b>{html.escape(label(row))}</b>"]
    lines += [f"{html.escape(k)}: {html.escape(v)}" for k, v in facts(row).items()]
    return "<br>".join(lines)


def points(rows: list[Record], x: str, y: str, **style: Any) -> go.Scatter:
    """Rows as points that can be hovered and clicked."""
    return go.Scatter(
        x=[row[x] for row in rows],
        y=[row[y] for row in rows],
        customdata=[row["key"] for row in rows],
        hovertext=[hover(row) for row in rows],
        hoverinfo="text",
        **style,
    )


def bars(rows: list[Record], metric: str) -> dict[str, Any]:
    """The standard errors of rows, where the metric has them."""
    errors = [row.get(f"{metric}_se") or 0 for row in rows]
    return {"type": "data", "array": errors, "thickness": 1.2, "width": 3}


def level(row: Record, y: str, places: list[Any], name: str, **line: Any) -> go.Scatter:
    """A horizontal line at a row's metric, with a few points to hover over."""
    return go.Scatter(
        x=places,
        y=[row[y]] * len(places),
        customdata=[row["key"]] * len(places),
        hovertext=hover(row),
        hoverinfo="text",
        mode="lines",
        name=html.escape(name),
        line={"width": 1.6, **line},
    )


def places_between(values: Sequence[Any], *, log: bool) -> list[Any]:
    """Where a level is drawn: a little beyond the values at both ends, and in the middle."""
    if isinstance(values[0], str):
        return sorted(set(values))
    low, high = min(values), max(values)
    if log:
        pad = max((high / low) ** 0.05, 1.1)
        ends = [low / pad, high * pad]
        return [ends[0], (ends[0] * ends[1]) ** 0.5, ends[1]]
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - margin, (low + high) / 2, high + margin]


def style_figure(figure: go.Figure, height: int, margin: dict[str, int], **more: Any) -> None:
    """Transparent, so that the page's colours show through."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        height=height,
        margin=margin,
        hovermode="closest",
        hoverlabel={"align": "left"},
        **more,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRange:
    """What a figure shows of a metric."""

    limits: list[float]  # powers of ten where it is logarithmic
    log: bool
    outside: list[Record]  # rows far worse than the trials


def metric_range(trials: list[Record], beside: list[Record], metric: str) -> MetricRange:
    """The range that the trials set.

    A row far worse than them (an untrained model) is named at the edge instead of pressing them
    together; a double click shows it.
    """
    sign = better_sign(metric)  # below, low values are better
    values = [sign * row[metric] for row in trials]
    others = [sign * row[metric] for row in beside]
    low = min([*values, *others])
    log = low > 0 and max(values) / min(values) >= 10
    ceiling = max(values) + (max(values) - low) + 0.05 * abs(max(values))
    high = max(value for value in [*values, *others] if value <= ceiling)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    limits = [low - pad if low <= 0 else max(low - pad, 0.0), high + pad]
    if log:
        limits = [math.log10(low / 1.15), math.log10(high * 1.15)]
    return MetricRange(
        limits=sorted(sign * limit for limit in limits),
        log=log,
        outside=[row for row in beside if sign * row[metric] > ceiling],
    )


def finish(
    figure: go.Figure,
    x_axis: dict[str, Any],
    metric: str,
    extractor: str,
    rows: tuple[list[Record], list[Record]],
) -> go.Figure:
    """Axes and surroundings that the figures of a metric share.

    Args:
        figure: with its traces.
        x_axis: Plotly's settings of the axis below.
        metric: the column of the axis at the left.
        extractor: whose features the metric was measured on.
        rows: the trials, which set the range, and what is drawn beside them.
    """
    shown = metric_range(*rows, metric)
    style: dict[str, Any] = {"gridcolor": GRID_COLOUR, "zeroline": False, "exponentformat": "none"}
    figure.update_xaxes(**x_axis, **style)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}}
    style_figure(figure, 520, {"l": 66, "r": 14, "t": 30, "b": 56}, legend=legend)
    title = html.escape(of_extractor(METRICS[metric].title, extractor))
    title += ", log scale" if shown.log else ""
    kind = "log" if shown.log else "linear"
    figure.update_yaxes(title=title, type=kind, range=shown.limits, **style)
    if shown.outside:
        below = METRICS[metric].higher_is_better
        names = ", ".join(f"{label(row)} {number(row[metric])}" for row in shown.outside)
        figure.add_annotation(
            text=html.escape(f"↓ below: {names}" if below else f"↑ above: {names}"),
            showarrow=False,
            x=1,
            y=0 if below else 1,
            xref="paper",
            yref="paper",
            xanchor="right",
            yanchor="bottom" if below else "top",
            font={"size": 12},
        )
    return figure
