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
from srdd_platform.sweep.definition import Sweep
from srdd_platform.sweep.finished import Outcome

SHOWN = 12  # rows of the live table
_MEASURED = (
    ("FID", "fid", "{:.4g}"),
    ("±", "fid_se", "{:.2g}"),
    ("acc", "accuracy", "{:.3f}"),
    ("NFE", "nfe", "{:.1f}"),
    ("GFLOPs", "gflops_per_image", "{:.3g}"),
    ("ms", "latency_ms", "{:.1f}"),
)


def axes_of(sweep: Sweep) -> list[str]:
    """The columns of a row that a sweep varies: axes of models, then settings."""
    return [*sweep.models, *sweep.space]


def _cells(row: Mapping[str, Any], axes: Sequence[str]) -> dict[str, str]:
    """What a row shows, by heading; "-" where it has no value, or one that is not a number."""
    shown = {name: _cell(row.get(name), "{:.3g}") for name in axes}
    return shown | {heading: _cell(row.get(name), form) for heading, name, form in _MEASURED}


def _cell(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return form.format(value) if isinstance(value, float) else str(value)


def rows_table(title: str | None, rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> Table:
    """A table of rows, a line each: what the sweep varies, then what was measured.

    Where it is wider than the terminal its headings go over several lines, and values stay whole.
    """
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True
    )
    lines = [_cells(row, axes) for row in rows]
    for heading in _cells({}, axes):
        width = max((len(line[heading]) for line in lines), default=0)
        table.add_column(heading, justify="right", overflow="fold", min_width=width)
    for line in lines:
        table.add_row(*line.values())
    return table


@contextmanager
def live(
    total: int, done: Sequence[Mapping[str, Any]], *, axes: Sequence[str], console: Console
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
            text = "  ".join(f"{heading} {cell}" for heading, cell in _cells(row, axes).items())
            console.print(f"  [{len(rows)}/{total}]  {text}", markup=False, soft_wrap=True)

        yield on_line
        return
    with Live(rows_table(title(), rows[-SHOWN:], axes), console=console) as view:

        def on_row(row: Mapping[str, Any]) -> None:
            rows.append(row)
            view.update(rows_table(title(), rows[-SHOWN:], axes))

        yield on_row


def print_frontier(
    rows: Sequence[Mapping[str, Any]], *, axes: Sequence[str], console: Console
) -> None:
    """The trials among a sweep's rows that no other beats in both FID and cost."""
    best = frontier(rows)
    extractors = ", ".join(sorted({row["extractor"] for row in best}))
    trials = sum(row["kind"] == "trial" for row in rows)
    title = f"Frontier of {trials} trials" + (extractors and f" (FID on features of {extractors})")
    console.print(title, soft_wrap=True)  # above the table, whose own title wraps at its width
    console.print(rows_table(None, best, axes))


def print_outcome(outcome: Outcome, *, axes: Sequence[str], console: Console) -> None:
    """The frontier, what failed, where the report is, and the command that serves the best."""
    print_frontier(outcome.rows, axes=axes, console=console)
    for row in outcome.rows:
        if row["status"] == "failed":
            console.print(f"failed: {row['key']}: {row['error']}", style="red")
    console.print(f"Report:  {outcome.report}", soft_wrap=True)
    if outcome.best is not None:
        console.print(f"Best:    srdd serve {outcome.best} --port 8000", soft_wrap=True)
