"""The results of a GPU check: rows, and the files that hold them at any moment of a run.

``gpu_check.json``, ``gpu_check.md`` and ``gpu_check.log``, each written whole, so that a run that
is cut short leaves what it had.
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks import command, tables
from benchmarks.isolated import Outcome
from srdd.errors import UserError

Status = Literal["ok", "failed", "skipped", "timed out", "cut", "running", "not run"]
BAD: tuple[Status, ...] = ("failed", "timed out", "cut", "not run")
NAME = "gpu_check.json"
_LOG_BYTES = 1 << 20  # kept of what each part printed, its end
_STAMPS = ("card", "torch", "commit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One reading, one comparison, or one thing that could not be done.

    Spreads are median, first and third quartile over interleaved rounds.
    """

    what: str  # the arm or the check
    status: Status = "ok"
    dtype: str = ""
    batch: int | None = None
    ms: list[float] | None = None  # of a call: device time, or process time on a CPU
    wall_ms: list[float] | None = None
    images_per_s: float | None = None
    peak_mb: float | None = None
    against_plain: list[float] | None = None  # times as fast as the plain arm, round by round
    rounds: int | None = None
    value: float | None = None
    bound: float | None = None  # where there is one, the row fails beyond it
    note: str = ""

    @property
    def key(self) -> tuple[str, str, int | None]:
        """A later row of the same key takes an earlier one's place."""
        return self.what, self.dtype, self.batch


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the numbers were read: sent once, stamped on every row."""

    facts: dict[str, Any]


@dataclass(slots=True)
class Part:
    """A part of the check as it stands."""

    name: str
    status: Status = "not run"
    message: str = ""
    seconds: float = 0.0
    limit_s: float = 0.0
    rows: dict[tuple[str, str, int | None], Row] = field(default_factory=dict)
    log: str = ""

    @property
    def ok(self) -> bool:
        """Whether it and all its rows are well, or were left out with a reason."""
        return self.status not in BAD and all(r.status not in BAD for r in self.rows.values())


@dataclass(slots=True)
class Results:
    """All parts, and the directory that shows them."""

    directory: Path
    arguments: dict[str, Any]
    parts: list[Part]
    machine: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    @property
    def ok(self) -> bool:
        """Whether every part was run to its end and is well."""
        return self.complete and all(part.ok for part in self.parts)

    def add(self, part: Part, what: Row | Machine) -> None:
        """Keep what a part sends, on disk."""
        if isinstance(what, Machine):
            self.machine = what.facts
        else:
            part.rows[what.key] = judged(what)
        self.write()

    def ended(self, part: Part, outcome: Outcome) -> None:
        """Keep how a part ended."""
        part.status, part.message, part.seconds = outcome.status, outcome.message, outcome.seconds
        self.write()

    def write(self) -> None:
        """Write the three files.

        Raises:
            UserError: the directory cannot be written.
        """
        report = {
            "benchmark": "gpu_check",
            "ok": self.ok,
            "complete": self.complete,
            "arguments": self.arguments,
            "machine": self.machine,
            "parts": [self._json(part) for part in self.parts],
        }
        base = self.directory / NAME
        logs = [f"== {part.name}\n{part.log}" for part in self.parts if part.log]
        try:
            command.write_text(base, json.dumps(report, indent=1) + "\n")
            command.write_text(base.with_suffix(".md"), self.markdown())
            command.write_text(base.with_suffix(".log"), "\n".join(logs))
        except OSError as error:
            raise UserError(f"--out {self.directory} cannot be written: {error.strerror}") from None

    def _json(self, part: Part) -> dict[str, Any]:
        stamp = {name: self.machine.get(name) for name in _STAMPS}
        rows = [{"part": part.name, **asdict(row), **stamp} for row in part.rows.values()]
        return {
            "name": part.name,
            "ok": part.ok,
            "status": part.status,
            "message": part.message,
            "seconds": round(part.seconds, 2),
            "limit_s": round(part.limit_s, 2),
            "rows": rows,
        }

    def markdown(self) -> str:
        """One line on the machine and one table: a line a part, then a line a row."""
        facts = self.machine
        where = ", ".join(f"{name} {facts[name]}" for name in _STAMPS if facts.get(name))
        end = "complete" if self.complete else "cut short or still running"
        lines: list[tuple[str, ...]] = []
        for part in self.parts:
            spent = f"{part.seconds:.0f} s of {part.limit_s:.0f}" if part.limit_s else ""
            note = ": ".join(filter(None, (spent, part.message)))
            lines.append((part.name, "", "", "", "", "", "", "", "", "", part.status, note))
            lines += [_cells(part.name, row) for row in part.rows.values()]
        head = ("part", "what", "dtype", "batch", "ms", "images/s", "peak MB", "against plain",
                "value", "bound", "result", "note")  # fmt: skip
        clean = [tuple(cell.replace("|", "/") for cell in line) for line in lines]
        table = tables.table(head, clean, text=(0, 1, 11))
        return f"gpu_check, {where or 'machine unknown'}, {end}\n\n{table}\n"


def judged(row: Row) -> Row:
    """A row whose value is beyond its bound, or is no number, has failed."""
    if row.value is not None and not math.isfinite(row.value):
        return replace(row, status="failed", value=None, note=f"{row.value} {row.note}".strip())
    if row.bound is None or row.value is None or row.value <= row.bound:
        return row
    return replace(row, status="failed")


def log_tail(path: Path) -> str:
    """The end of what a part printed."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _cells(part: str, row: Row) -> tuple[str, ...]:
    number, batch = tables.number, "" if row.batch is None else str(row.batch)
    values = (row.images_per_s, row.peak_mb, row.value, row.bound)
    rate, peak, value, bound = ("" if v is None else number(v) for v in values)
    ms = "" if row.ms is None else tables.spread(row.ms)
    ratio = "" if row.against_plain is None else tables.spread(row.against_plain, unit="x")
    return (part, row.what, row.dtype, batch, ms, rate, peak, ratio, value, bound, row.status,
            row.note)  # fmt: skip
