"""A finished sweep is known by its files, without what it was made with."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from var_rows import var_row

import srdd
from srdd_platform.cli import sweep as cli
from srdd_platform.evaluation.rows import write_row
from srdd_platform.sweep.definition import Float, Sweep
from srdd_platform.sweep.finished import FINISHED, note_finished, read_finished, stamp_sources
from srdd_platform.sweep.options import Request, SweepArgs

SWEEP = Sweep(name="small", space={"cfg": Float(0, 1)}, first=[{"cfg": 0.5}])
HEAVY = ("torch", "ray", "optuna", "pandas", "pyarrow", "plotly")


@pytest.fixture
def made(tmp_path: Path) -> tuple[SweepArgs, Path]:
    """The options of a finished sweep, and the weights that it was made from."""
    out, weights = tmp_path / "out", tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    for name in ("report", "grids"):
        (out / name).mkdir(parents=True)
    (out / "config.json").write_text("{}")
    (out / "report" / "index.html").write_text("page")
    (out / "grids" / "a.png").write_bytes(b"png")
    write_row(out, var_row("a", fid=2.0, gflops_per_image=1.0, cfg=0.5, extractor="classifier-1"))
    args = SweepArgs(out=out, trials=1)
    note_finished(Request(SWEEP, args), stamp_sources([weights]))
    return args, weights


def test_the_same_command_reads_what_the_sweep_came_to(made: tuple[SweepArgs, Path]) -> None:
    args, _ = made
    outcome = read_finished(Request(SWEEP, args))
    assert outcome is not None
    assert [row["key"] for row in outcome.rows] == ["a"]
    assert outcome.report == outcome.directory / "report" / "index.html"
    assert outcome.best is None


def older(path: Path) -> None:
    """As if the file had been written at another time."""
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda out: older(out.parent / "model.safetensors"),
        lambda out: (out.parent / "model.safetensors").write_bytes(b"other weights"),
        lambda out: (out.parent / "model.safetensors").unlink(),
        lambda out: older(out / "config.json"),
        lambda out: older(out / "report" / "index.html"),
        lambda out: (out / "grids" / "a.png").unlink(),
        lambda out: (out / "rows" / "a.json").unlink(),
        lambda out: write_row(out, var_row("b")),
        lambda out: (out / FINISHED).write_text("{"),
        lambda out: (out / FINISHED).write_text("[]"),
        lambda out: (out / FINISHED).unlink(),
    ],
)
def test_where_a_file_has_changed_it_may_not_be_finished(
    made: tuple[SweepArgs, Path], change: Callable[[Path], object]
) -> None:
    args, weights = made
    change(weights.parent / "out")
    assert read_finished(Request(SWEEP, args)) is None


def test_what_changed_while_it_was_made_is_not_taken_for_its_source(
    made: tuple[SweepArgs, Path],
) -> None:
    args, weights = made
    sources = stamp_sources([weights])
    weights.write_bytes(b"trained anew")
    note_finished(Request(SWEEP, args), sources)
    assert read_finished(Request(SWEEP, args)) is None


def test_a_change_of_the_code_is_noticed(
    made: tuple[SweepArgs, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args, weights = made
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(srdd, "__file__", str(package / "__init__.py"))
    note_finished(Request(SWEEP, args), stamp_sources([weights]))
    (package / "__pycache__").mkdir()
    assert read_finished(Request(SWEEP, args)) is not None
    (package / "new.py").symlink_to("nowhere")  # as editors lock a file
    assert read_finished(Request(SWEEP, args)) is None


def test_where_something_else_is_asked_for_it_may_not_be_finished(
    made: tuple[SweepArgs, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args, _ = made
    assert read_finished(Request(SWEEP, replace(args, trials=2))) is None
    assert read_finished(Request(replace(SWEEP, space={"cfg": Float(0, 2)}), args)) is None
    assert read_finished(Request(replace(SWEEP, figures=[]), args)) is None
    monkeypatch.chdir(tmp_path)  # the page shows a command from where it was built
    assert read_finished(Request(SWEEP, args)) is None


def test_the_command_line_prints_a_finished_sweep_and_runs_nothing(
    made: tuple[SweepArgs, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    args, _ = made
    monkeypatch.setattr(sys, "argv", ["sweep", "--out", str(args.out), "--trials", "1"])
    monkeypatch.setitem(sys.modules, "srdd_platform.sweep.run", None)  # it cannot be imported
    cli.main(SWEEP, "A sweep.")
    printed = capsys.readouterr().out
    assert "Frontier of 1 trials (FID on features of classifier-1)" in printed
    assert f"Report:  {args.out}/report/index.html" in printed


@pytest.mark.parametrize("given", [True, False])
def test_the_sweep_of_a_preset_is_for_its_own_models(
    made: tuple[SweepArgs, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], given: bool,
) -> None:  # fmt: skip
    args, weights = made
    options = ["--out", str(args.out), "--trials", "1"]
    if given:
        options += ["--model", str(weights), "--data", str(weights)]
        args = replace(args, model=weights, data=weights)
    note_finished(Request(SWEEP, args), stamp_sources([weights]))
    other = replace(SWEEP, name="other")
    sweeps = (SWEEP, {"digits": other}) if given else (other, {"digits": SWEEP})
    monkeypatch.setattr(sys, "argv", ["sweep", *options])
    monkeypatch.setitem(sys.modules, "srdd_platform.sweep.run", None)  # it cannot be imported
    cli.main(sweeps[0], "A sweep.", presets=sweeps[1])
    assert "Frontier of 1 trials" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["sweep.finished", "sweep.definition", "cli.sweep_tables"])
def test_it_needs_no_large_library(module: str) -> None:
    code = f"import sys, srdd_platform.{module}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(found.stdout.split())
