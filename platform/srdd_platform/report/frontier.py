"""The facts a report draws, computed from a sweep directory and tested by value."""

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
from srdd_platform.evaluation.rows import COLUMNS, frontier, model_columns
from srdd_platform.evaluation.table import COLUMN_TYPES
from srdd_platform.report.hypervolume import hypervolume, hypervolume_reference
from srdd_platform.report.wording import Record, fingerprint_text, label, number

MEASURED = frozenset({"latency_ms"})  # costs that depend on where they were measured


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
    grids: frozenset[str]  # keys that have a grids/KEY.png

    @property
    def facts(self) -> dict[str, Any]:
        """What the figures read of the configuration: its settings, and what a sweep noted."""
        settings = self.config.get("settings")
        return {**(settings if isinstance(settings, dict) else {}), **self.config}


@dataclass(frozen=True, kw_only=True, slots=True)
class CostAxis:
    """A cost that FID is drawn against; a measured one belongs to one device and dtype."""

    column: str
    title: str
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierInfo:
    """FID against one cost, for rows that may be compared."""

    axis: CostAxis
    protocol: Protocol
    trials: list[Record]  # cheapest first
    frontier: list[Record]  # those no other trial beats in both
    references: list[Record]  # have this cost: markers
    lines: list[Record]  # have no cost at all (real images): horizontal lines
    hypervolume: float | None
    hypervolume_reference: tuple[float, float] | None  # (cost, fid)
    notes: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """The sweep in numbers."""

    trials: int
    finished: int
    failed: int
    searched: dict[str, str]  # setting -> the values seen
    fixed: dict[str, str]
    extractors: list[str]
    best: Record | None
    best_rule: str


def load_sweep(directory: Path) -> SweepData:
    """Read the table, the configuration and the names of the grids.

    Raises:
        UserError: the directory is not a sweep's, or its table is damaged or foreign.
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
    path = directory / "trials.parquet"
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
    return SweepData(
        name=directory.resolve().name,
        rows=[{name: _finite(row.get(name)) for name in {**row, **COLUMNS}} for row in rows],
        config=config,
        grids=frozenset(path.stem for path in (directory / "grids").glob("*.png")),
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def usable(rows: Iterable[Record], kind: str) -> list[Record]:
    """The rows of a kind that finished with an FID."""
    return [r for r in rows if r["kind"] == kind and r["status"] == "ok" and r["fid"] is not None]


def protocol_of(row: Record) -> Protocol:
    """What a row's FID may be compared under."""
    return Protocol(row["extractor"], row["n"], row["reference"])


def protocols(rows: Iterable[Record]) -> list[Protocol]:
    """The protocols of the finished trials: most images first, then most trials."""
    counts = Counter(protocol_of(row) for row in usable(rows, "trial"))
    return sorted(counts, key=lambda p: (-p.n, -counts[p], p))


def cost_axes(rows: Iterable[Record]) -> list[CostAxis]:
    """The cost axes the trials can be drawn on, one a device and dtype for measured costs."""
    trials = usable(rows, "trial")
    axes = []
    if any(_positive(row["gflops_per_image"]) for row in trials):
        axes.append(CostAxis(column="gflops_per_image", title="GFLOPs per image"))
    timed = {fingerprint_text(row) for row in trials if _positive(row["latency_ms"])}
    axes += [
        CostAxis(column="latency_ms", title=f"latency in ms, one image ({text})", fingerprint=text)
        for text in sorted(timed)
    ]
    return axes


def _positive(value: Any) -> bool:
    return value is not None and value > 0


def frontier_info(
    rows: Iterable[Record], axis: CostAxis, config: dict[str, Any] | None = None
) -> FrontierInfo:
    """FID against a cost: all trials, those not dominated, and the reference rows beside them.

    Raises:
        UserError: no trial has this cost, the trials' FIDs were not measured alike, or a
            measured cost comes from more than one device or dtype.
    """
    rows = list(rows)
    costed = [row for row in usable(rows, "trial") if _positive(row[axis.column])]
    together = sorted({protocol_of(row) for row in costed})
    if not together:
        raise UserError(f"no finished trial has {axis.column}: there is no frontier to draw")
    if len(together) > 1:
        raise UserError(
            "one frontier needs one extractor, number of images and reference; "
            f"these trials have: {' | '.join(map(str, together))}"
        )
    places = sorted({fingerprint_text(row) for row in costed})
    if axis.column in MEASURED and len(places) > 1:
        raise UserError(
            f"one frontier over {axis.column} needs one device and dtype; "
            f"these trials have: {' | '.join(places)}"
        )
    markers, lines, notes = _references(rows, axis, together[0], places[0])
    reference = hypervolume_reference(config or {}, axis.column)
    points = [(row[axis.column], row["fid"]) for row in costed]
    return FrontierInfo(
        axis=axis,
        protocol=together[0],
        trials=sorted(costed, key=lambda row: (row[axis.column], row["fid"], row["key"])),
        frontier=[dict(row) for row in frontier(costed, axis.column)],
        references=markers,
        lines=lines,
        hypervolume=None if reference is None else hypervolume(points, reference),
        hypervolume_reference=reference,
        notes=notes,
    )


def _references(
    rows: list[Record], axis: CostAxis, protocol: Protocol, place: str
) -> tuple[list[Record], list[Record], list[str]]:
    """Reference rows to draw as markers, as lines, and why the others are left out."""
    markers, lines, notes = [], [], []
    for row in usable(rows, "reference"):
        own = protocol_of(row)
        costless = row["gflops_per_image"] is None and row["latency_ms"] is None
        if (own.extractor, own.reference) != (protocol.extractor, protocol.reference):
            notes.append(f"{label(row)} is not drawn: measured as {own}.")
        elif costless:
            lines.append(row)
            if own.n != protocol.n:
                notes.append(
                    f"{label(row)} is measured on n={own.n:,}, the trials on n={protocol.n:,}: "
                    "FID reads higher on fewer images."
                )
        elif own.n != protocol.n:
            notes.append(f"{label(row)} is not drawn: n={own.n:,}, the trials n={protocol.n:,}.")
        elif not _positive(row[axis.column]):
            notes.append(f"{label(row)} is not drawn: it has no {axis.column}.")
        elif axis.column in MEASURED and fingerprint_text(row) != place:
            notes.append(f"{label(row)} is not drawn: timed on {fingerprint_text(row)}.")
        else:
            markers.append(row)
    return markers, lines, notes


def seen_values(rows: Iterable[Record], name: str) -> list[Any]:
    """The distinct values of a setting, sorted, None (inactive) last."""
    values = {row[name] for row in rows}
    return [*sorted(values - {None}), *([None] if None in values else [])]


def overview(sweep: SweepData) -> Overview:
    """Counts, what was searched and what was held, and the best trial of the main protocol."""
    trials = [row for row in sweep.rows if row["kind"] == "trial"]
    main = protocols(trials)[:1]
    ranked = sorted(
        (row for row in usable(trials, "trial") if protocol_of(row) in main),
        key=lambda row: (row["fid"], row["gflops_per_image"] or math.inf, row["key"]),
    )
    finished = [row for row in trials if row["status"] == "ok"] or trials
    own = model_columns(finished[0]) if finished else []
    seen = {name: seen_values(finished, name) for name in own}
    return Overview(
        trials=len(trials),
        finished=sum(row["status"] == "ok" for row in trials),
        failed=sum(row["status"] == "failed" for row in trials),
        searched={name: _range_text(values) for name, values in seen.items() if len(values) > 1},
        fixed={n: number(v[0]) for n, v in seen.items() if len(v) == 1 and v[0] is not None},
        extractors=sorted({row["extractor"] for row in sweep.rows if row["extractor"]}),
        best=ranked[0] if ranked else None,
        best_rule=str(sweep.facts.get("best_rule") or "lowest FID"),
    )


def _range_text(values: list[Any]) -> str:
    """Up to six values in full, more numbers as a range."""
    given = [value for value in values if value is not None]
    inactive = " or inactive" if None in values else ""
    if len(given) > 6 and not isinstance(given[0], str):
        return f"{number(given[0])} to {number(given[-1])}{inactive}"
    return ", ".join(number(value) for value in given) + inactive
