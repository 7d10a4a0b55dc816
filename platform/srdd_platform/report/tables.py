"""Tables of rows: what the page shows beside its figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from srdd_platform.report.columns import COSTS, METRICS
from srdd_platform.report.frontier import USUAL_COSTS
from srdd_platform.report.wording import MISSING, Record, label, number, plus_minus, settings_text


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


def table(rows: Sequence[Record], settings: Iterable[str]) -> Table:
    """Rows as a table: the given settings a column each, or all active ones in one column."""
    names = [*settings]
    spec = [s for s in _columns(rows, names) if s[0] in names or _is_given(rows, s[0])]
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


def _columns(rows: Sequence[Record], settings: list[str]) -> list[tuple[str, str, str]]:
    """The columns that a table can have, in order: name, title, whose features measure it."""
    extractors = sorted({row["extractor"] for row in rows if row["fid"] is not None})
    whose = f"({extractors[0] if len(extractors) == 1 else 'extractor in its column'})"
    features = [name for name in METRICS if name != "accuracy"]
    quality = {name: (name, METRICS[name].title, whose) for name in features}
    costs = {name: (name, column.title, "") for name, column in COSTS.items()}
    return [
        quality.pop("fid"),
        *(costs.pop(name) for name in USUAL_COSTS),
        *((name, name, "") for name in settings),
        *quality.values(),
        ("accuracy", METRICS["accuracy"].title, ""),
        *costs.values(),
        ("n", "images", ""),
        ("reference", "compared with", ""),
        ("status", "status", ""),
        *([("extractor", "extractor", "")] if len(extractors) > 1 else []),
    ]


def _is_given(rows: Sequence[Record], name: str) -> bool:
    return any(row[name] is not None for row in rows)


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
