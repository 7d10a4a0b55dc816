"""A sweep directory as read, and which of its rows compare."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from srdd.errors import UserError
from srdd_platform.core.files import read_json
from srdd_platform.evaluation.protocol import NEW_COLUMNS
from srdd_platform.evaluation.rows import COLUMNS
from srdd_platform.evaluation.table import COLUMN_TYPES
from srdd_platform.report.setup import Setup, read_setup
from srdd_platform.report.wording import Record


class Protocol(NamedTuple):
    """What two FIDs must share to be compared."""

    extractor: str
    n: int
    reference: str

    def __str__(self) -> str:
        return f"{self.extractor}, n={self.n:,} against {self.reference}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepData:
    """A sweep directory as read: nothing else of it reaches the report."""

    name: str
    rows: list[Record]
    config: dict[str, Any]
    setup: Setup  # what the figures read of the configuration
    grids: frozenset[str]  # keys that have a grids/KEY.png


def load_sweep(directory: Path) -> SweepData:
    """Read the table, the configuration and the names of the grids.

    Raises:
        UserError: the directory is not a sweep's, its table is damaged or foreign, or its
            configuration names a figure that cannot be drawn.
        OSError: the table cannot be read, as the system says.
    """
    missing = [n for n in ("trials.parquet", "config.json") if not (directory / n).is_file()]
    if missing:
        raise UserError(
            f"{directory} is not a finished sweep directory: {' and '.join(missing)} missing; "
            "name a directory that a sweep has written"
        )
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{directory / 'config.json'} is not a JSON object; run the sweep again")
    return SweepData(
        name=directory.resolve().name,
        rows=_read_rows(directory / "trials.parquet"),
        config=config,
        setup=read_setup(config),
        grids=frozenset(path.stem for path in (directory / "grids").glob("*.png")),
    )


def _read_rows(path: Path) -> list[Record]:
    """The rows of a table; columns that only later protocols have are null."""
    stored = pa.BufferReader(path.read_bytes())
    try:
        table = pq.read_table(stored)
        lacking = [name for name in COLUMNS if name not in table.column_names]
        if "protocol" in lacking:  # fid@1
            lacking = [name for name in lacking if name not in NEW_COLUMNS]
        types = [(field.name, COLUMN_TYPES.get(field.name, field.type)) for field in table.schema]
        rows = [] if lacking else table.cast(pa.schema(types)).to_pylist()
    except (pa.ArrowException, OSError):
        raise UserError(f"{path} is damaged: delete it and run the sweep again") from None
    if lacking:
        raise UserError(f"{path} lacks the columns {', '.join(lacking)}; run the sweep again")
    return [{name: _finite(row.get(name)) for name in {**row, **COLUMNS}} for row in rows]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def usable(rows: Iterable[Record], kind: str, metric: str = "fid") -> list[Record]:
    """The rows of a kind that finished with an FID, and with the metric."""
    wanted = {"fid", metric}
    return [
        row
        for row in rows
        if row["kind"] == kind and row["status"] == "ok" and all(row[m] is not None for m in wanted)
    ]


def protocol_of(row: Record) -> Protocol:
    """What a row's FID may be compared under."""
    return Protocol(row["extractor"], row["n"], row["reference"])


def protocols(rows: Iterable[Record]) -> list[Protocol]:
    """The protocols of the finished trials: most images first, then most trials."""
    counts = Counter(protocol_of(row) for row in usable(rows, "trial"))
    return sorted(counts, key=lambda p: (-p.n, -counts[p], p))


def one_protocol(rows: Iterable[Record]) -> Protocol:
    """The protocol that finished trials share.

    Raises:
        UserError: there is none, or they do not share one.
    """
    found = protocols(rows)
    if len(found) != 1:
        names = " | ".join(map(str, found)) or "none finished"
        raise UserError(f"one figure needs trials measured alike; these have: {names}")
    return found[0]


def seen_values(rows: Iterable[Record], name: str) -> list[Any]:
    """The distinct values of a setting, sorted, None (inactive) last."""
    values = {row[name] for row in rows}
    return [*sorted(values - {None}), *([None] if None in values else [])]


def equal(a: Any, b: Any) -> bool:
    """Equality that forgives the last digits of a float that went through text."""
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
        return bool(a == b)
    return math.isclose(a, b, rel_tol=1e-9)
