"""Draw the facts as Plotly figures: transparent, so that the page's colours show through."""

import html
import math
from typing import Any

import plotly.graph_objects as go

from srdd_platform.report.info import FrontierInfo
from srdd_platform.report.settings import INACTIVE, ParallelInfo, ThresholdInfo
from srdd_platform.report.wording import Record, facts, label, number, of_extractor

# Okabe and Ito's colours, told apart with any colour vision; each line has its own symbol too
PALETTE = ("#2f86c1", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#7b6fd0", "#56b4e9", "#8a8a8a")
SYMBOLS = ("square", "diamond", "triangle-up", "star", "x", "hexagon", "triangle-down", "cross")
DASHES = ("dash", "dot", "dashdot", "longdash")
BEST_TO_WORST = ((47, 134, 193), (154, 143, 160), (213, 94, 0))  # seen on light and dark
GRID_COLOUR = "rgba(128,128,128,0.22)"


def hover(row: Record) -> str:
    """All that is known of a row, escaped: Plotly reads a subset of HTML in hover text."""
    lines = [f"<b>{html.escape(label(row))}</b>"]
    lines += [f"{html.escape(k)}: {html.escape(v)}" for k, v in facts(row).items()]
    return "<br>".join(lines)


def _points(rows: list[Record], x: str, **style: Any) -> go.Scatter:
    """Rows as points of FID that can be hovered and clicked."""
    return go.Scatter(
        x=[row[x] for row in rows],
        y=[row["fid"] for row in rows],
        customdata=[row["key"] for row in rows],
        hovertext=[hover(row) for row in rows],
        hoverinfo="text",
        **style,
    )


def _bars(rows: list[Record]) -> dict[str, Any]:
    errors = [row["fid_se"] or 0 for row in rows]
    return {"type": "data", "array": errors, "thickness": 1.2, "width": 3}


def _level(row: Record, ends: list[float], name: str, **line: Any) -> go.Scatter:
    """A horizontal line at a row's FID, with a few points to hover over."""
    middle = (ends[0] * ends[1]) ** 0.5
    return go.Scatter(
        x=[ends[0], middle, ends[1]],
        y=[row["fid"]] * 3,
        customdata=[row["key"]] * 3,
        hovertext=hover(row),
        hoverinfo="text",
        mode="lines",
        name=html.escape(name),
        line={"width": 1.6, **line},
    )


def _ends(values: list[float]) -> list[float]:
    """The ends of a log axis, a little beyond its values."""
    pad = max((max(values) / min(values)) ** 0.05, 1.1)
    return [min(values) / pad, max(values) * pad]


def _between(share: float) -> str:
    """The colour at a share of the way from the best to the worst."""
    low, middle, high = BEST_TO_WORST
    pair = (low, middle) if share < 0.5 else (middle, high)
    at = 2 * share if share < 0.5 else 2 * share - 1
    return "rgb({},{},{})".format(*(round(a + at * (b - a)) for a, b in zip(*pair, strict=True)))


def _finish(
    figure: go.Figure, x_title: str, extractor: str, trials: list[Record], beside: list[Record]
) -> go.Figure:
    """Axes and surroundings that the figures of FID share.

    The trials set the range: a row far above them (an untrained model) is named at the upper edge
    instead of pressing them together; a double click shows it.
    """
    fids = [row["fid"] for row in trials]
    low = min([*fids, *(row["fid"] for row in beside)])
    wide = low > 0 and max(fids) / min(fids) >= 10
    ceiling = max(fids) + (max(fids) - low) + 0.05 * abs(max(fids))
    above = [row for row in beside if row["fid"] > ceiling]
    high = max(row["fid"] for row in [*trials, *beside] if row["fid"] <= ceiling)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    limits = [low - pad if low <= 0 else max(low - pad, 0.0), high + pad]
    if wide:
        limits = [math.log10(low / 1.15), math.log10(high * 1.15)]
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        height=520,
        margin={"l": 66, "r": 14, "t": 30, "b": 56},
        hovermode="closest",
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
    )
    style: dict[str, Any] = {"gridcolor": GRID_COLOUR, "zeroline": False, "exponentformat": "none"}
    figure.update_xaxes(title=f"{html.escape(x_title)}, log scale", type="log", **style)
    y_title = html.escape(of_extractor("FID", extractor))
    y_title += ", log scale" if wide else ""
    figure.update_yaxes(title=y_title, type="log" if wide else "linear", range=limits, **style)
    if above:
        names = ", ".join(f"{label(row)} {number(row['fid'])}" for row in above)
        figure.add_annotation(
            text=html.escape(f"↑ above: {names}"),
            showarrow=False,
            x=1,
            y=1,
            xref="paper",
            yref="paper",
            xanchor="right",
            yanchor="top",
            font={"size": 12},
        )
    return figure


def draw_frontier(info: FrontierInfo) -> go.Figure:
    """FID against cost: trials, the line of those not dominated, and what they are beside."""
    x = info.axis.column
    figure = go.Figure()
    costs = [row[x] for row in [*info.trials, *info.references]]
    for i, row in enumerate(info.lines):
        name = label(row)
        name += f" (n={row['n']:,})" if row["n"] != info.protocol.n else ""
        style = {"color": PALETTE[7], "dash": DASHES[i % len(DASHES)]}
        figure.add_trace(_level(row, _ends(costs), name, **style))
    best = {row["key"] for row in info.frontier}
    rest = [row for row in info.trials if row["key"] not in best]
    if rest:
        marker = {"color": PALETTE[0], "size": 8, "opacity": 0.6}
        figure.add_trace(_points(rest, x, mode="markers", name="trials", marker=marker))
    figure.add_trace(
        _points(
            info.frontier,
            x,
            mode="lines+markers",
            name="not dominated",
            line={"color": PALETTE[1], "width": 2, "shape": "hv"},
            marker={"color": PALETTE[1], "size": 10},
            error_y=_bars(info.frontier),
        )
    )
    for i, row in enumerate(info.references):
        marker = {
            "symbol": SYMBOLS[i % len(SYMBOLS)] + "-open",  # open: one does not hide another
            "color": PALETTE[2 + i % 4],
            "size": 13,
            "line": {"width": 2.5},
        }
        name = html.escape(label(row))
        figure.add_trace(
            _points([row], x, mode="markers", name=name, marker=marker, error_y=_bars([row]))
        )
    beside = [*info.references, *info.lines]
    if max(costs) < 100 * min(costs):  # Plotly's own ticks would read "0.1, 2, 5"
        figure.update_xaxes(tick0=-1, dtick=math.log10(2), tickformat=".2~g")
    return _finish(figure, info.axis.title, info.protocol.extractor, info.trials, beside)


def draw_threshold(info: ThresholdInfo) -> go.Figure:
    """FID against the resampling threshold, a line a refinement count."""
    figure = go.Figure()
    x = "resample_threshold"
    on_lines = [row for rows in info.lines.values() for row in rows]
    drawn = [*on_lines, *info.others]
    if info.plain is not None:
        ends = _ends([row[x] for row in drawn])
        figure.add_trace(
            _level(info.plain, ends, "no refinement (plain)", color=PALETTE[7], dash="dash")
        )
    if info.others:
        marker = {"color": PALETTE[7], "size": 7, "opacity": 0.45}
        figure.add_trace(
            _points(info.others, x, mode="markers", name="off the grid", marker=marker)
        )
    for i, (steps, rows) in enumerate(info.lines.items()):
        colour = PALETTE[i % 7]
        figure.add_trace(
            _points(
                rows,
                x,
                mode="lines+markers",
                name=f"refine_steps {steps}",
                line={"color": colour, "width": 2},
                marker={"color": colour, "size": 9, "symbol": SYMBOLS[i % len(SYMBOLS)]},
                error_y=_bars(rows),
            )
        )
    if on_lines:
        thresholds = sorted({row[x] for row in on_lines})
        ticks = thresholds if len(thresholds) <= 8 else thresholds[:: len(thresholds) // 6]
        figure.update_xaxes(tickvals=ticks, ticktext=[number(value) for value in ticks])
    plain = [] if info.plain is None else [info.plain]
    return _finish(figure, "resample_threshold", info.protocol.extractor, drawn, plain)


def draw_parallel(info: ParallelInfo) -> go.Figure:
    """Each trial as a line over the axes, coloured by FID; drawn as SVG, so any browser can."""
    figure = go.Figure()
    last = len(info.axes) - 1
    places = list(range(last + 1))
    fids = info.axes[-1].positions
    # worst first, so that the best lie on top
    for i in sorted(range(len(info.rows)), key=lambda i: -fids[i]):
        row = info.rows[i]
        colour = _between(fids[i])
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
        line = {"color": "rgba(128,128,128,0.8)", "width": 1.2}
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, line=line, layer="below")
        side: dict[str, Any] = {"xanchor": "right" if place == last else "left", "showarrow": False}
        inward = -6 if place == last else 6
        for at, text in axis.ticks:
            figure.add_annotation(
                x=place, y=at, text=html.escape(text), xshift=inward, font={"size": 11}, **side
            )
        title = html.escape(axis.title)  # the last names the extractor: a line of its own above
        if place < last:
            title = title.replace("_", "_<br>").replace(" ", "<br>")
        figure.add_annotation(
            x=place,
            y=1,
            yref="paper",
            yanchor="bottom",
            yshift=56 if place == last else 0,
            text=title,
            align=side["xanchor"],
            **side,
        )
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        height=440,
        margin={"l": 10, "r": 10, "t": 88, "b": 10},
        hovermode="closest",
        hoverlabel={"align": "left"},
        showlegend=False,
    )
    figure.update_xaxes(visible=False, fixedrange=True, range=[-0.1, last + 0.1])
    figure.update_yaxes(visible=False, fixedrange=True, range=[INACTIVE - 0.06, 1.03])
    return figure
