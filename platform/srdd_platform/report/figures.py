"""Draw the facts as Plotly figures."""

import html
import math
from typing import Any

import plotly.graph_objects as go

from srdd_platform.report.columns import METRICS
from srdd_platform.report.drawing import (
    DASHES,
    GREY,
    PALETTE,
    SYMBOLS,
    bars,
    finish,
    hover,
    level,
    places_between,
    points,
    style_figure,
)
from srdd_platform.report.frontier import FrontierInfo
from srdd_platform.report.lines import LinesInfo
from srdd_platform.report.parallel import INACTIVE, ParallelAxis, ParallelInfo
from srdd_platform.report.ticks import round_values
from srdd_platform.report.wording import label, number, setting_text

BEST_TO_WORST = ((47, 134, 193), (154, 143, 160), (213, 94, 0))  # seen on light and dark
MODEL_COLOURS = (PALETTE[0], PALETTE[2], PALETTE[3], PALETTE[5], PALETTE[4], PALETTE[6])
MODEL_SYMBOLS = ("circle", *SYMBOLS)


def draw_frontier(info: FrontierInfo) -> go.Figure:
    """A metric against cost: trials, the line of those not dominated, what they are beside."""
    x, figure = info.axis.column, go.Figure()
    costs = [row[x] for row in [*info.trials, *info.references]]
    for i, row in enumerate(info.lines):
        name = label(row)
        name += f" (n={row['n']:,})" if row["n"] != info.protocol.n else ""
        style = {"color": GREY, "dash": DASHES[i % len(DASHES)]}
        figure.add_trace(level(row, info.metric, places_between(costs, log=True), name, **style))
    _add_trials(figure, info)
    for i, row in enumerate(info.references):
        marker = {
            "symbol": SYMBOLS[i % len(SYMBOLS)] + "-open",  # open: one does not hide another
            "color": PALETTE[2 + i % 4],
            "size": 13,
            "line": {"width": 2.5},
        }
        more = {"name": html.escape(label(row)), "error_y": bars([row], info.metric)}
        figure.add_trace(points([row], x, info.metric, mode="markers", marker=marker, **more))
    axis = {**_cost_ticks(costs), "title": f"{html.escape(info.axis.title)}, log scale"}
    axis["type"] = "log"
    beside = [*info.references, *info.lines]
    return finish(figure, axis, info.metric, info.protocol.extractor, (info.trials, beside))


def _cost_ticks(costs: list[float]) -> dict[str, Any]:
    """The ticks of a logarithmic axis of costs: Plotly's own would read "0.1, 2, 5"."""
    low, high = min(costs), max(costs)
    if high >= 100 * low:
        return {}
    if math.floor(math.log2(high / 0.1)) > math.ceil(math.log2(low / 0.1)):  # two doublings of 0.1
        return {"tick0": -1, "dtick": math.log10(2), "tickformat": ".2~g"}
    ticks = round_values(low, high, log=False)
    return {"tickvals": ticks, "ticktext": [number(value) for value in ticks]}


def _add_trials(figure: go.Figure, info: FrontierInfo) -> None:
    """The trials and the line of those not dominated.

    Where several models made the trials, each has a colour and a symbol, and a ring marks the
    trials that are not dominated.
    """
    x = info.axis.column
    best = {row["key"] for row in info.frontier}
    several = len(info.models) > 1
    for i, (model, rows) in enumerate(info.models.items()):
        marker = {"color": MODEL_COLOURS[i % len(MODEL_COLOURS)], "size": 8, "opacity": 0.6}
        shown = rows if several else [row for row in rows if row["key"] not in best]
        if several:
            marker |= {"symbol": MODEL_SYMBOLS[i % len(MODEL_SYMBOLS)], "opacity": 0.8}
        if shown:
            name = html.escape(model) if several else "trials"
            more = {"mode": "markers", "name": name, "marker": marker}
            figure.add_trace(points(shown, x, info.metric, **more))
    ring = {"symbol": "circle-open", "size": 14, "line": {"width": 2}}
    figure.add_trace(
        points(
            info.frontier,
            x,
            info.metric,
            mode="lines+markers",
            name="not dominated",
            line={"color": PALETTE[1], "width": 2, "shape": "hv"},
            marker={"color": PALETTE[1], "size": 10, **(ring if several else {})},
            error_y=bars(info.frontier, info.metric),
        )
    )


def draw_lines(info: LinesInfo) -> go.Figure:
    """A metric against a setting, a line for each value of another."""
    figure, x, series = go.Figure(), info.figure.x, info.figure.series
    on_lines = [row for rows in info.lines.values() for row in rows]
    drawn = [*on_lines, *info.others]
    for i, row in enumerate(info.levels):
        places = places_between([row[x] for row in drawn], log=info.log)
        name = f"{x} inactive" if series is None else setting_text(series, row[series])
        style = {"color": GREY, "dash": DASHES[i % len(DASHES)]}
        figure.add_trace(level(row, info.figure.metric, places, name, **style))
    if info.others:
        marker = {"color": GREY, "size": 7, "opacity": 0.45}
        name = "off the grid" if info.listed else "other settings"
        more = {"mode": "markers", "name": name, "marker": marker}
        figure.add_trace(points(info.others, x, info.figure.metric, **more))
    for i, (value, rows) in enumerate(info.lines.items()):
        colour, symbol = PALETTE[i % 7], SYMBOLS[i % len(SYMBOLS)]
        name = "trials" if series is None else f"{series} {number(value) or 'inactive'}"
        figure.add_trace(
            points(
                rows,
                x,
                info.figure.metric,
                mode="lines+markers",
                name=html.escape(name),
                line={"color": colour, "width": 2},
                marker={"color": colour, "size": 9, "symbol": symbol},
                error_y=bars(rows, info.figure.metric),
            )
        )
    extractor = info.protocol.extractor
    return finish(figure, _x_axis(info), info.figure.metric, extractor, (drawn, info.levels))


def _x_axis(info: LinesInfo) -> dict[str, Any]:
    """The axis of a setting: its values are the ticks where they are few."""
    rows = [row for rows in info.lines.values() for row in rows]
    values = sorted({row[info.figure.x] for row in [*rows, *info.others]})
    title = html.escape(info.figure.x)
    if isinstance(values[0], str):
        return {
            "title": title,
            "type": "category",
            "categoryorder": "array",
            "categoryarray": values,
        }
    on_lines = sorted({row[info.figure.x] for row in rows})
    ticks = on_lines if len(on_lines) <= 8 else on_lines[:: len(on_lines) // 6]
    axis: dict[str, Any] = {}
    if on_lines and (info.log or len(on_lines) <= 8):
        axis = {"tickvals": ticks, "ticktext": [number(value) for value in ticks]}
    if info.log:
        return {**axis, "title": f"{title}, log scale", "type": "log"}
    return {**axis, "title": title, "type": "linear"}


def between(share: float) -> str:
    """The colour at a share of the way from the best to the worst."""
    low, middle, high = BEST_TO_WORST
    pair = (low, middle) if share < 0.5 else (middle, high)
    at = 2 * share if share < 0.5 else 2 * share - 1
    return "rgb({},{},{})".format(*(round(a + at * (b - a)) for a, b in zip(*pair, strict=True)))


def draw_parallel(info: ParallelInfo) -> go.Figure:
    """Each trial as a line over the axes, coloured by the metric; as SVG, so any browser can."""
    figure = go.Figure()
    last = len(info.axes) - 1
    places = list(range(last + 1))
    shares = info.axes[-1].positions  # of the way from the best to the worst
    if METRICS[info.metric].higher_is_better:
        shares = [1 - share for share in shares]
    # worst first, so that the best lie on top
    for i in sorted(range(len(info.rows)), key=lambda i: -shares[i]):
        row, colour = info.rows[i], between(shares[i])
        figure.add_trace(
            go.Scatter(
                x=places,
                y=[axis.positions[i] for axis in info.axes],
                customdata=[row["key"]] * len(places),
                hovertext=hover(row),
                hoverinfo="text",
                mode="lines+markers",
                line={"color": colour, "width": 1.6},
                marker={"color": colour, "size": 5},
                opacity=0.85,
                meta=row["key"],
            )
        )
    for place, axis in enumerate(info.axes):
        _add_axis(figure, axis, place, last=place == last)
    style_figure(figure, 440, {"l": 10, "r": 10, "t": 88, "b": 10}, showlegend=False)
    figure.update_xaxes(visible=False, fixedrange=True, range=[-0.1, last + 0.1])
    figure.update_yaxes(visible=False, fixedrange=True, range=[INACTIVE - 0.06, 1.03])
    return figure


def _add_axis(figure: go.Figure, axis: ParallelAxis, place: int, *, last: bool) -> None:
    """An axis with its ticks and its title."""
    line = {"color": "rgba(128,128,128,0.8)", "width": 1.2}
    figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line=line, layer="below")
    side: dict[str, Any] = {"xanchor": "right" if last else "left", "showarrow": False}
    for at, text in axis.ticks:
        shift = -6 if last else 6
        figure.add_annotation(
            x=place, y=at, text=html.escape(text), xshift=shift, font={"size": 11}, **side
        )
    title = html.escape(axis.title)  # the last names the extractor: a line of its own above
    if not last:
        title = title.replace("_", "_<br>").replace(" ", "<br>")
    figure.add_annotation(
        x=place,
        y=1,
        yref="paper",
        yanchor="bottom",
        yshift=56 if last else 0,
        text=title,
        align=side["xanchor"],
        **side,
    )
