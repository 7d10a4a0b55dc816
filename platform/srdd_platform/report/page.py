"""Render the report: one HTML page beside its own copy of plotly.js, read from ``file://``."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from srdd_platform.core.files import write_bytes
from srdd_platform.evaluation.protocol import FIRST_KID_NOTE, KID_NOTE
from srdd_platform.report.figures import draw_frontier, draw_parallel, draw_threshold
from srdd_platform.report.info import (
    FrontierInfo,
    Overview,
    Protocol,
    SweepData,
    cost_axes,
    frontier_info,
    load_sweep,
    overview,
    protocol_of,
    protocols,
)
from srdd_platform.report.inputs import META, PAGE, SCRIPT, inputs_digest, serve_command
from srdd_platform.report.settings import parallel_info, threshold_info
from srdd_platform.report.wording import (
    COSTS,
    QUALITY,
    Record,
    facts,
    fingerprint_text,
    is_inception,
    label,
    number,
    plus_minus,
    settings_text,
)

MISSING = "—"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A table cell: what is read and what it is sorted by."""

    text: str
    value: str | float


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table whose rows open the sample panel."""

    columns: list[tuple[str, str]]  # title and, where quality is measured, "(extractor)"
    rows: list[tuple[str, list[Cell]]]  # a row's key and its cells


@dataclass(kw_only=True, slots=True)
class View:
    """One figure as HTML, or the reason why there is none."""

    title: str
    figure: str = ""
    table: Table | None = None
    hypervolume: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """The figures of the trials that were measured alike."""

    protocol: Protocol
    frontiers: list[View]
    threshold: View
    parallel: View


def build_report(directory: Path) -> Path:
    """Write ``report/index.html`` of a sweep directory and return its path.

    The page depends on the table, the configuration and the presence of grids alone: built twice
    it is the same, byte for byte. It loads nothing but ``plotly.min.js`` beside it and the grids.

    Raises:
        UserError: the directory is not a sweep's, or a file in it is damaged or foreign.
    """
    directory = Path(directory)
    sweep = load_sweep(directory)
    digest = inputs_digest(directory, [row["key"] for row in sweep.rows])
    text = render(sweep, serve_command(directory), digest)
    script = get_plotlyjs().encode()
    target = directory / SCRIPT
    if not target.exists() or target.read_bytes() != script:
        write_bytes(target, script)
    write_bytes(directory / PAGE, text.encode())
    return directory / PAGE


def render(sweep: SweepData, command: str, digest: str) -> str:
    """The page as text; ``digest`` is of :func:`inputs_digest`."""
    facts_of_sweep = overview(sweep)
    trials = [row for row in sweep.rows if row["kind"] == "trial"]
    references = [row for row in sweep.rows if row["kind"] == "reference"]
    failed = [row for row in sweep.rows if row["status"] == "failed"]
    searched = list(facts_of_sweep.searched)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        name=sweep.name,
        statement=statement(sweep, facts_of_sweep),
        overview=facts_of_sweep,
        foreign=[name for name in facts_of_sweep.extractors if not is_inception(name)],
        sections=[section(sweep, p, i) for i, p in enumerate(protocols(trials))],
        references=table(references, []),
        trials=table(trials, searched),
        failed=failed_table(failed),
        panel={row["key"]: panel(row, sweep.grids) for row in sweep.rows},
        grids_missing=sum(r["status"] == "ok" and r["key"] not in sweep.grids for r in trials),
        config=json.dumps(sweep.config, indent=2, ensure_ascii=False),
        command=command,
        meta=META,
        digest=digest,
        kid_notes=kid_notes(sweep.rows),
        best_label="" if facts_of_sweep.best is None else label(facts_of_sweep.best),
        best_text=best_text(facts_of_sweep.best),
    )


def statement(sweep: SweepData, view: Overview) -> str:
    """What was searched, in one paragraph."""
    count = f"{view.trials:,} trial{'' if view.trials == 1 else 's'}"
    measured = [str(p) for p in protocols(sweep.rows)]
    parts = [f"{count} of the sampler: {view.finished:,} finished, {view.failed:,} failed."]
    if measured:
        parts.append(f"Measured on {'; '.join(measured)}.")
    if view.searched:
        parts.append("Searched: " + "; ".join(f"{k} ({v})" for k, v in view.searched.items()) + ".")
    if view.fixed:
        parts.append("Held: " + "; ".join(f"{k} {v}" for k, v in view.fixed.items()) + ".")
    return " ".join(parts)


def kid_notes(rows: Iterable[Record]) -> list[str]:
    """How to read the column KID, for the protocols of the rows that have one."""
    measured = [row["protocol"] for row in rows if {row["kid"], row["kid_raw"]} != {None}]
    notes = [FIRST_KID_NOTE] if None in measured else []
    return [*notes, KID_NOTE] if any(measured) else notes


def best_text(best: Record | None) -> str:
    """The best trial in one line."""
    if best is None:
        return ""
    fid = plus_minus(best["fid"], best["fid_se"])
    return f"FID {fid} ({best['extractor']}), {settings_text(best)}"


def section(sweep: SweepData, protocol: Protocol, index: int) -> Section:
    """The figures over one protocol's trials and the references they may be seen beside."""
    rows = [row for row in sweep.rows if row["kind"] == "reference" or protocol_of(row) == protocol]
    frontiers = []
    for number_of_axis, axis in enumerate(cost_axes(rows)):
        same_place = [
            row
            for row in rows
            if row["kind"] == "reference"
            or axis.fingerprint in (None, fingerprint_text(row))  # one device and dtype a figure
        ]
        info = frontier_info(same_place, axis, sweep.facts)
        view = View(
            title=axis.title,
            figure=draw(draw_frontier(info), f"frontier-{index}-{number_of_axis}"),
            table=table(info.frontier, list(overview(sweep).searched)),
            hypervolume=hypervolume_text(info),
            notes=info.notes,
        )
        frontiers.append(view)
    threshold = View(title="FID against threshold")
    lines = threshold_info(rows, sweep.facts)
    if lines is None:
        threshold.notes = ["The configuration names no grid of thresholds: no figure."]
    else:
        threshold.title += f" at cfg {number(lines.cfg) or 'none'}, feedback {lines.feedback}"
        threshold.notes = lines.notes
        if lines.lines or lines.others:
            threshold.figure = draw(draw_threshold(lines), f"threshold-{index}")
    parallel = View(title="All settings")
    axes = parallel_info(rows)
    if len(axes.rows) > 1:
        parallel.figure = draw(draw_parallel(axes), f"parallel-{index}")
    else:
        parallel.notes = ["One finished trial: nothing to compare."]
    return Section(protocol=protocol, frontiers=frontiers, threshold=threshold, parallel=parallel)


def hypervolume_text(info: FrontierInfo) -> str:
    """The hypervolume with its reference, or why there is none."""
    if info.hypervolume is None or info.hypervolume_reference is None:
        return f"Hypervolume: not computed, the configuration sets no reference {info.axis.column}."
    cost, fid = info.hypervolume_reference
    return (
        f"Hypervolume of the trials on (log2 {info.axis.column}, FID) up to the reference "
        f"({number(cost)}, {number(fid)}): {number(info.hypervolume)}."
    )


def draw(figure: go.Figure, name: str) -> str:
    """A figure as a fragment that finds plotly.js loaded by the page."""
    config = {"responsive": True, "displayModeBar": False, "plotlyServerURL": ""}  # no cloud
    fragment: str = plotly.io.to_html(
        figure, config=config, include_plotlyjs=False, full_html=False, div_id=name
    )
    return fragment


def table(rows: Sequence[Record], settings: Iterable[str]) -> Table:
    """Rows as a table: the given settings a column each, or all active ones in one column."""
    extractors = sorted({row["extractor"] for row in rows if row["fid"] is not None})
    whose = extractors[0] if len(extractors) == 1 else "extractor in its column"
    names = [*settings]
    quality = {name: (name, title, f"({whose})") for name, title in QUALITY.items()}
    costs = {name: (name, title, "") for name, title in COSTS.items()}
    spec = [quality.pop("fid"), costs.pop("gflops_per_image"), costs.pop("latency_ms")]
    spec += [(name, name, "") for name in names]
    spec += [*quality.values(), ("accuracy", "accuracy", ""), *costs.values()]
    spec += [("n", "images", ""), ("reference", "compared with", ""), ("status", "status", "")]
    spec += [("extractor", "extractor", "")] if len(extractors) > 1 else []
    spec = [s for s in spec if s[0] in names or any(row[s[0]] is not None for row in rows)]
    columns = [("row", ""), *((title, note) for _, title, note in spec)]
    columns += [] if names else [("settings", "")]
    body = []
    for row in rows:
        cells = [Cell(text=label(row), value=label(row) if row["name"] else row["order"])]
        cells += [cell(row, name) for name, _, _ in spec]
        if not names:
            text = settings_text(row)
            cells.append(Cell(text=text or MISSING, value=text))
        body.append((row["key"], cells))
    return Table(columns=columns, rows=body)


def cell(row: Record, name: str) -> Cell:
    """One value, with its standard error for FID; nulls sort last."""
    value: Any = row[name]
    text = plus_minus(value, row["fid_se"]) if name == "fid" else number(value)
    return Cell(text=text or MISSING, value="" if value is None else value)


def failed_table(rows: Sequence[Record]) -> Table:
    """The failed rows with their settings and their error line."""
    body = []
    for row in rows:
        texts = [label(row), settings_text(row) or MISSING, row["error"] or "no error line"]
        body.append((row["key"], [Cell(text=text, value=text) for text in texts]))
    return Table(columns=[("row", ""), ("settings", ""), ("error", "")], rows=body)


def panel(row: Record, grids: frozenset[str]) -> dict[str, Any]:
    """What the sample panel shows of a row."""
    key = row["key"]
    return {
        "title": label(row),
        "grid": f"../grids/{key}.png" if key in grids else None,
        "facts": list(facts(row).items()),
    }
