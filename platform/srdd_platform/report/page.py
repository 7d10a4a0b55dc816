"""Render the report: one HTML page beside its own copy of plotly.js, read from ``file://``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from srdd_platform.core.files import write_bytes
from srdd_platform.evaluation.protocol import FIRST_KID_NOTE, KID_NOTE
from srdd_platform.report.columns import COSTS, METRICS
from srdd_platform.report.data import SweepData, load_sweep, protocols
from srdd_platform.report.inputs import META, PAGE, SCRIPT, inputs_digest, serve_command
from srdd_platform.report.overview import Overview, overview
from srdd_platform.report.sections import section
from srdd_platform.report.tables import failed_table, table
from srdd_platform.report.wording import (
    Record,
    facts,
    is_inception,
    label,
    plus_minus,
    settings_text,
)


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
        sections=[section(sweep, p, i, searched) for i, p in enumerate(protocols(trials))],
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
        best_text=best_text(facts_of_sweep.best, sweep.setup.objectives[0]),
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


def best_text(best: Record | None, objective: str) -> str:
    """The best trial in one line, by the objective that makes it the best."""
    if best is None:
        return ""
    title = {**METRICS, **COSTS}[objective].title
    value = plus_minus(best[objective], best.get(f"{objective}_se"))
    return f"{title} {value} ({best['extractor']}), {settings_text(best)}"


def panel(row: Record, grids: frozenset[str]) -> dict[str, Any]:
    """What the sample panel shows of a row."""
    key = row["key"]
    return {
        "title": label(row),
        "grid": f"../grids/{key}.png" if key in grids else None,
        "facts": list(facts(row).items()),
    }
