"""What a page is made of, as a digest that the page carries: a current page is not built again.

This module imports neither torch nor pandas nor Plotly: to compare the digest takes milliseconds,
to build the page takes seconds.
"""

import hashlib
import re
import shlex
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from srdd_platform.evaluation import protocol, rows

PAGE, SCRIPT = "report/index.html", "report/plotly.min.js"
META = "srdd-inputs"  # the name of the page's meta element that holds the digest
_HEAD = 2048  # bytes of a page that hold it
_SOURCES = (".py", ".css", ".js", ".j2")


def serve_command(directory: Path) -> str:
    """The command that serves the best, from where the report is built if the sweep is below."""
    absolute = directory.resolve()
    here = Path.cwd().resolve()
    shown = absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
    return f"srdd serve {shlex.quote(str(shown / 'best'))} --port 8000"


def inputs_digest(directory: Path, keys: Iterable[str]) -> str:
    """The SHA-256 of all that a page depends on.

    That is the table, the configuration, which sample grids exist, the command that the page
    shows, and the code: this package's files, what it takes of the evaluation (the notes of the
    protocol, the columns of rows, frontiers), and Plotly's version.

    Args:
        directory: the sweep directory.
        keys: those of the table's rows.

    Raises:
        OSError: the table or the configuration cannot be read.
    """
    here = Path(__file__).parent
    sources = [path for path in sorted(here.iterdir()) if path.suffix in _SOURCES]
    sources += [Path(str(module.__file__)) for module in (protocol, rows)]
    files = [*sources, directory / "trials.parquet"]
    lists = [
        sorted(keys),
        sorted(path.stem for path in (directory / "grids").glob("*.png")),
        [serve_command(directory), version("plotly")],
    ]
    parts = [path.read_bytes() for path in [*files, directory / "config.json"]]
    parts += ["\n".join(names).encode() for names in lists]
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def report_is_current(directory: Path) -> bool:
    """Whether the page of a sweep directory shows what is in the directory now.

    It does not where a row was written after the table was compiled, or nothing can be read.
    """
    keys = [path.stem for path in (directory / "rows").glob("*.json")]
    try:
        with (directory / PAGE).open("rb") as file:
            head = file.read(_HEAD).decode(errors="replace")
        found = re.search(f'<meta name="{META}" content="([0-9a-f]*)">', head)
        if found is None or not (directory / SCRIPT).is_file():
            return False
        return found[1] == inputs_digest(directory, keys)
    except OSError:
        return False
