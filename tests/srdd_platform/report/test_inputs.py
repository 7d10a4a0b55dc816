"""Whether a page is current: each thing that it depends on, and what looking needs imported."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from srdd_platform.core.files import write_json
from srdd_platform.evaluation import rows
from srdd_platform.evaluation.rows import Row, write_row
from srdd_platform.evaluation.table import compile_table
from srdd_platform.report import inputs
from srdd_platform.report.inputs import report_is_current
from srdd_platform.report.page import build_report


def row(key: str, fid: float) -> Row:
    return Row(key=key, kind="trial", name="", order=0, fid=fid, gflops_per_image=1.0)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A finished sweep with its page."""
    directory = tmp_path / "sweep"
    write_row(directory, row("a", 2.0))
    write_json(directory / "config.json", {})
    (directory / "grids").mkdir()
    compile_table(directory)
    build_report(directory)
    return directory


def written_after(directory: Path) -> None:
    write_row(directory, row("b", 1.0))


def compiled_after(directory: Path) -> None:
    """The row has its page's key, another value."""
    (directory / "rows" / "a.json").unlink()
    write_row(directory, row("a", 3.0))
    compile_table(directory)


def configured_after(directory: Path) -> None:
    write_json(directory / "config.json", {"best_rule": "another"})


def sampled_after(directory: Path) -> None:
    (directory / "grids" / "a.png").touch()


def cut_short(directory: Path) -> None:
    page = directory / "report" / "index.html"
    page.write_text(page.read_text()[:40])


def made_before_pages_had_a_digest(directory: Path) -> None:
    page = directory / "report" / "index.html"
    page.write_text("".join(line for line in page.open() if "srdd-inputs" not in line))


@pytest.mark.parametrize(
    "change",
    [
        written_after,
        compiled_after,
        configured_after,
        sampled_after,
        cut_short,
        made_before_pages_had_a_digest,
        lambda directory: shutil.rmtree(directory / "report"),
        lambda directory: (directory / "report" / "plotly.min.js").unlink(),
        lambda directory: shutil.rmtree(directory / "rows"),
    ],
)
def test_a_page_is_current_until_what_it_shows_changes(
    sweep: Path, change: Callable[[Path], None]
) -> None:
    assert report_is_current(sweep)
    change(sweep)
    assert not report_is_current(sweep)
    if not (sweep / "rows").exists():
        return
    compile_table(sweep)
    build_report(sweep)
    assert report_is_current(sweep)


def test_a_moved_directory_and_another_version_need_a_new_page(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    moved = sweep.rename(tmp_path / "moved")
    assert not report_is_current(moved)  # its page shows how to serve the old place
    build_report(moved)
    assert report_is_current(moved)
    monkeypatch.setattr(inputs, "version", lambda name: f"another {name}")
    assert not report_is_current(moved)
    monkeypatch.undo()
    package = Path(inputs.__file__).parent
    copied = shutil.copytree(package, tmp_path / "package")
    monkeypatch.setattr(inputs, "__file__", str(copied / "inputs.py"))
    assert report_is_current(moved)
    (copied / "page.css").write_text((package / "page.css").read_text() + "\n")
    assert not report_is_current(moved)
    monkeypatch.undo()
    assert report_is_current(moved)
    other = tmp_path / "rows.py"
    other.write_text("COLUMNS = {}\n")
    monkeypatch.setattr(rows, "__file__", str(other))
    assert not report_is_current(moved)


def test_nothing_is_current_where_there_is_no_sweep(tmp_path: Path) -> None:
    assert not report_is_current(tmp_path / "nowhere")


def test_looking_needs_neither_torch_nor_pandas_nor_plotly() -> None:
    script = (
        "import sys, srdd.errors, srdd.load; before = set(sys.modules);"
        "import srdd_platform.report.inputs;"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not {"torch", "pandas", "pyarrow", "plotly", "jinja2"} & {*found.stdout.split()}
    assert "srdd_platform" in found.stdout
