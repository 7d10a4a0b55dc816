"""A finished sweep is known without loading what it was made with.

``.finished.json`` in a sweep directory holds a digest of what was asked for, of the files that it
was made from and of those that it wrote. While all are as they were, the same command has nothing
to do but to print. Any difference, and the sweep looks at everything again. The file may be
deleted at any time. This module imports neither torch nor Ray, Optuna and pandas.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import srdd
import srdd_platform
from srdd.errors import UserError
from srdd_platform.core.files import digest, read_json, write_json
from srdd_platform.evaluation.rows import read_rows
from srdd_platform.report.inputs import PAGE
from srdd_platform.sweep.options import Request

FINISHED = ".finished.json"
_LEFT_OUT = (FINISHED, ".lock")  # of the files that a sweep wrote
_SOURCES = (".py", ".j2", ".css", ".js")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sweep has come to."""

    directory: Path
    rows: Sequence[Mapping[str, Any]]  # as JSON, in the order of the table

    @property
    def report(self) -> Path:
        """The page."""
        return self.directory / PAGE

    @property
    def best(self) -> Path | None:
        """The pipeline directory of the best trial, if one succeeded."""
        path = self.directory / "best"
        return path if path.exists() else None


def stamp_sources(inputs: Iterable[Path]) -> dict[str, Any]:
    """What a sweep is made from, as it is now: take it before the first row.

    Args:
        inputs: the files; the code is added to them.
    """
    paths = sorted({str(path.resolve()) for path in inputs})
    packages = [Path(str(package.__file__)).parent for package in (srdd, srdd_platform)]
    code = (path for root in packages for path in root.rglob("*") if path.suffix in _SOURCES)
    return {"inputs": paths, "sources": _stamps([*map(Path, paths), *code])}


def note_finished(request: Request, sources: Mapping[str, Any]) -> Outcome:
    """Record that a sweep is finished.

    Args:
        request: what was asked for.
        sources: what it was made from, as :func:`stamp_sources` found it.
    """
    write_json(request.directory / FINISHED, {**sources, "result": _result(request)})
    return Outcome(request.directory, read_rows(request.directory))


def read_finished(request: Request) -> Outcome | None:
    """The outcome of a sweep that is finished; None if there may be something to do."""
    try:
        found = read_json(request.directory / FINISHED)
        now = {**stamp_sources(map(Path, found["inputs"])), "result": _result(request)}
    except (UserError, OSError, TypeError, KeyError):  # absent or damaged
        return None
    return Outcome(request.directory, read_rows(request.directory)) if found == now else None


def _result(request: Request) -> str:
    """A digest of what was asked for, and of the files that were written."""
    written = (path for path in request.directory.rglob("*") if path.name not in _LEFT_OUT)
    return digest([repr(request), str(Path.cwd()), _stamps(written)])


def _stamps(paths: Iterable[Path]) -> str:
    """A digest of files' names, sizes and times of change; directories have names alone."""
    return digest(sorted(map(_stamp, paths)))


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat(follow_symlinks=False)  # a link need not lead anywhere
    return (str(path), 0, 0) if path.is_dir() else (str(path), status.st_size, status.st_mtime_ns)
