"""Tables on the terminal."""

import io
import math
from typing import Any

from rich.console import Console
from var_rows import var_row

from srdd_platform.cli.sweep_tables import SHOWN, axes_of, live, print_frontier, rows_table
from srdd_platform.evaluation.rows import to_json
from srdd_platform.sweep.definition import Float, Int, Sweep

AXES = ("cfg", "refine_steps", "resample_threshold", "feedback")


def row(order: int, **values: Any) -> dict[str, Any]:
    return to_json(var_row(f"k{order}", order=order, **values))


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=120, color_system=None), file


def test_what_is_inactive_is_a_dash() -> None:
    plain = row(0, cfg=0.5, refine_steps=0, fid=1.23456, nfe=4.0)
    cells = [list(column.cells) for column in rows_table("t", [plain], AXES).columns]
    headings = [str(column.header) for column in rows_table("t", [plain], AXES).columns]
    shown = {heading: cell[0] for heading, cell in zip(headings, cells, strict=True)}
    assert shown["cfg"] == "0.5"
    assert shown["refine_steps"] == "0"
    assert shown["resample_threshold"] == shown["feedback"] == shown["acc"] == "-"
    assert shown["FID"] == "1.235"
    assert shown["NFE"] == "4.0"


def test_the_columns_are_what_the_sweep_varies() -> None:
    sweep = Sweep(
        name="s", space={"noise": Float(0, 1), "steps": Int(1, 4)}, models={"mask": ["markov"]}
    )
    found = {"mask": "markov", "noise": 0.12345, "steps": 3, "fid": 2.0}
    columns = rows_table("t", [found], axes_of(sweep)).columns
    cells = {str(column.header): next(iter(column.cells)) for column in columns}
    assert list(cells)[:4] == ["mask", "noise", "steps", "FID"]
    assert [cells[name] for name in list(cells)[:4]] == ["markov", "0.123", "3", "2"]


def test_a_narrow_terminal_breaks_headings_and_no_values() -> None:
    found = row(
        0, cfg=2.25, refine_steps=12, resample_threshold=0.000165, feedback="updated",
        fid=0.1651, fid_se=0.015, accuracy=0.989, nfe=27.5, gflops_per_image=0.447,
    )  # fmt: skip
    file = io.StringIO()
    Console(file=file, width=80).print(rows_table(None, [found], AXES))
    assert max(map(len, file.getvalue().splitlines())) <= 80
    shown = "2.25 12 0.000165 updated 0.1651 0.015 0.989 27.5 0.447 -".split()
    assert file.getvalue().splitlines()[-2].split() == shown
    assert "…" not in file.getvalue()


def test_without_a_terminal_each_row_is_a_line() -> None:
    out, file = console(terminal=False)
    with live(5, [row(0, fid=3.0)], axes=AXES, console=out) as on_row:
        on_row(row(1, fid=2.0, feedback="[kept]"))
        on_row({**row(2), "fid": math.nan})
    lines = file.getvalue().splitlines()
    assert [line.split("]")[0].strip() for line in lines] == ["[2/5", "[3/5"]
    assert "FID 2 " in lines[0]
    assert "feedback [kept]" in lines[0]  # not taken for markup
    assert "FID -" in lines[1]


def test_on_a_terminal_the_table_grows() -> None:
    out, file = console(terminal=True)
    with live(40, [row(0, fid=3.0)], axes=AXES, console=out) as on_row:
        for i in range(1, SHOWN + 5):
            on_row(row(i, fid=3.0 - i / 100, cfg=float(i)))
    text = file.getvalue()
    assert f"{SHOWN + 5} of 40 trials, lowest FID 2.84" in text


def test_the_title_survives_a_failed_trial() -> None:
    out, file = console(terminal=True)
    with live(3, [], axes=AXES, console=out) as on_row:
        on_row({**row(0), "fid": math.nan})  # as Tune reports it
        on_row(row(1, fid=5.0))
        on_row(row(2, fid=4.0))
    assert "3 of 3 trials, lowest FID 4" in file.getvalue()


def test_the_frontier_names_the_extractor() -> None:
    rows = [
        row(0, fid=2.0, gflops_per_image=1.0, extractor="classifier-12345678", cfg=0.25),
        row(1, fid=3.0, gflops_per_image=2.0, extractor="classifier-12345678", cfg=0.75),
        {**row(2, fid=9.0), "kind": "reference"},
    ]
    out, file = console(terminal=False)
    print_frontier(rows, axes=AXES, console=out)
    text = file.getvalue()
    assert "Frontier of 2 trials (FID on features of classifier-12345678)" in text
    assert "0.25" in text
    assert "0.75" not in text  # beaten


def test_a_frontier_without_trials_names_no_extractor() -> None:
    out, file = console(terminal=False)
    print_frontier([row(0, fid=None)], axes=AXES, console=out)
    assert file.getvalue().splitlines()[0] == "Frontier of 1 trials"
