"""Tables on the terminal: trials as they finish, and the frontier at the end."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from srdd_platform.evaluation.rows import frontier
from srdd_platform.sweep.finished import Outcome

SHOWN = 12  # rows of the live table
_COLUMNS = (
    ("cfg", "cfg", "{:.3g}"),
    ("T", "refine_steps", "{:.0f}"),
    ("thresh", "resample_threshold", "{:.2g}"),
    ("feedback", "feedback", "{}"),
    ("FID", "fid", "{:.4g}"),
    ("±", "fid_se", "{:.2g}"),
    ("acc", "accuracy", "{:.3f}"),
    ("NFE", "nfe", "{:.1f}"),
    ("GFLOPs", "gflops_per_image", "{:.3g}"),
    ("ms", "latency_ms", "{:.1f}"),
)


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = []
    for _, name, form in _COLUMNS:
        value = row.get(name)
        absent = value is None or (isinstance(value, float) and math.isnan(value))
        cells.append("-" if absent else form.format(value))
    return cells


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of rows, a line each."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for heading, name, _ in _COLUMNS:
        table.add_column(heading, justify="left" if name == "feedback" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


@contextmanager
def live(
    total: int, done: Sequence[Mapping[str, Any]], console: Console
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A table of the last trials that grows as they finish; lines where there is no terminal."""
    rows = list(done)

    def title() -> str:
        fids = [row["fid"] for row in rows if row.get("fid") is not None]
        best = min(filter(math.isfinite, fids), default=math.nan)
        return f"{len(rows)} of {total} trials, lowest FID {best:.4g}"

    if not console.is_terminal:

        def on_line(row: Mapping[str, Any]) -> None:
            rows.append(row)
            pairs = zip(_COLUMNS, _cells(row), strict=True)
            text = "  ".join(f"{heading} {cell}" for (heading, _, _), cell in pairs)
            console.print(f"  [{len(rows)}/{total}]  {text}", markup=False, soft_wrap=True)

        yield on_line
        return
    with Live(rows_table(title(), rows[-SHOWN:]), console=console) as view:

        def on_row(row: Mapping[str, Any]) -> None:
            rows.append(row)
            view.update(rows_table(title(), rows[-SHOWN:]))

        yield on_row


def print_frontier(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The trials among a sweep's rows that no other beats in both FID and cost."""
    best = frontier(rows)
    extractors = ", ".join(sorted({row["extractor"] for row in best}))
    trials = sum(row["kind"] == "trial" for row in rows)
    title = f"Frontier of {trials} trials (FID on features of {extractors})"
    console.print(rows_table(title, best))


def print_outcome(outcome: Outcome, console: Console) -> None:
    """The frontier, what failed, where the report is, and the command that serves the best."""
    print_frontier(outcome.rows, console)
    for row in outcome.rows:
        if row["status"] == "failed":
            console.print(f"failed: {row['key']}: {row['error']}", style="red")
    console.print(f"Report:  {outcome.report}", soft_wrap=True)
    if outcome.best is not None:
        console.print(f"Best:    srdd serve {outcome.best} --port 8000", soft_wrap=True)
