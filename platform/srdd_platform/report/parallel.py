"""What the settings do to FID: the threshold figure's lines and the parallel coordinates."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from srdd.errors import UserError
from srdd_platform.evaluation.rows import model_columns
from srdd_platform.report.info import Protocol, protocol_of, protocols, seen_values, usable
from srdd_platform.report.wording import Record, number, of_extractor

INACTIVE = -0.14  # where a parallel axis shows a setting that did not act; others lie in [0, 1]
LOGARITHMIC = frozenset({"resample_threshold", "epsilon", "gflops_per_image", "latency_ms"})
GRID_KEYS = ("cfg", "feedback", "thresholds", "refine_steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdInfo:
    """FID against the resampling threshold, a line a refinement count (the paper's Fig. 5)."""

    protocol: Protocol
    cfg: float | None
    feedback: str | None
    lines: dict[int, list[Record]]  # refine_steps -> grid rows by threshold
    others: list[Record]  # same cfg and feedback, off the grid
    plain: Record | None  # no refinement, at the same cfg
    notes: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelAxis:
    """One axis: where its ticks are and where each row crosses it."""

    name: str
    title: str
    ticks: list[tuple[float, str]]
    positions: list[float]  # a row each, in [0, 1] or INACTIVE


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelInfo:
    """The finished trials as lines over the searched settings, cost and FID."""

    protocol: Protocol
    rows: list[Record]
    axes: list[ParallelAxis]


def one_protocol(rows: list[Record]) -> Protocol:
    """The protocol that finished trials share.

    Raises:
        UserError: there is none, or they do not share one.
    """
    found = protocols(rows)
    if len(found) != 1:
        names = " | ".join(map(str, found)) or "none finished"
        raise UserError(f"one figure needs trials measured alike; these have: {names}")
    return found[0]


def threshold_info(rows: Iterable[Record], config: dict[str, Any]) -> ThresholdInfo | None:
    """The lines of FID against threshold at the grid's cfg and feedback; None without a grid.

    Grid rows are the finished trials at the grid's thresholds and refinement counts that agree
    in all other settings; where several such sets exist, the one that fills most of the grid.
    """
    grid = config.get("grid")
    if not grid:
        return None
    if not isinstance(grid, dict) or any(key not in grid for key in GRID_KEYS):
        raise UserError(f"grid in config.json must have {', '.join(GRID_KEYS)}")
    rows = list(rows)
    protocol = one_protocol(rows)
    same = [row for row in usable(rows, "trial") if _same(row, grid, ("cfg", "feedback"))]
    refined = [row for row in same if row["refine_steps"] and row["resample_threshold"] is not None]
    drawn = [row for row in refined if row["resample_threshold"] > 0]
    cells = [
        row
        for row in drawn
        if any(_equal(row["resample_threshold"], t) for t in grid["thresholds"])
        and row["refine_steps"] in grid["refine_steps"]
    ]
    filled = Counter(_others(row) for row in cells)
    common = max(filled, key=lambda key: filled[key]) if filled else ()
    chosen = [row for row in cells if _others(row) == common]
    lines = {
        steps: sorted(
            (row for row in chosen if row["refine_steps"] == steps),
            key=lambda row: (row["resample_threshold"], row["key"]),
        )
        for steps in sorted({row["refine_steps"] for row in chosen})
    }
    on_grid = {row["key"] for row in chosen}
    notes = []
    if len(drawn) < len(refined):
        count = len(refined) - len(drawn)
        notes.append(f"{count} at threshold 0 have no place on a log axis; the tables have them.")
    wanted = len(set(grid["thresholds"])) * len({t for t in grid["refine_steps"] if t})
    if len(chosen) < wanted:
        notes.append(f"{wanted - len(chosen)} of the grid's {wanted} settings have no FID here.")
    plain = _plain(rows, grid, protocol, dict(common))
    if plain is None:
        notes.append("No row without refinement was measured at this cfg.")
    return ThresholdInfo(
        protocol=protocol,
        cfg=grid["cfg"],
        feedback=grid["feedback"],
        lines=lines,
        others=[row for row in drawn if row["key"] not in on_grid],
        plain=plain,
        notes=notes,
    )


def _equal(a: Any, b: Any) -> bool:
    """Equality that forgives the last digits of a float that went through text."""
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
        return bool(a == b)
    return math.isclose(a, b, rel_tol=1e-9)


def _same(row: Record, grid: dict[str, Any], names: Iterable[str]) -> bool:
    return all(_equal(row[name], grid[name]) for name in names)


def _others(row: Record) -> tuple[tuple[str, Any], ...]:
    """The settings beside the figure's own four."""
    own = {"cfg", "feedback", "resample_threshold", "refine_steps"}
    return tuple((name, row[name]) for name in model_columns(row) if name not in own)


def _plain(
    rows: list[Record], grid: dict[str, Any], protocol: Protocol, common: dict[str, Any]
) -> Record | None:
    """The row without refinement: a trial alike in all else, or the reference called plain."""
    shared = [name for name in common if name not in ("resample", "epsilon")]
    candidates = [
        row
        for row in [*usable(rows, "trial"), *usable(rows, "reference")]
        if protocol_of(row) == protocol
        and row["refine_steps"] == 0
        and not row["epsilon"]
        and _same(row, grid, ["cfg"])
        and (
            "plain" in row["name"].lower()
            if row["kind"] == "reference"
            else _same(row, common, shared)
        )
    ]
    return candidates[0] if candidates else None


def parallel_info(rows: Iterable[Record]) -> ParallelInfo:
    """The searched settings, the cost and the FID of every finished trial as parallel axes."""
    rows = list(rows)
    protocol = one_protocol(rows)
    trials = usable(rows, "trial")
    own = model_columns(trials[0])
    titles = {name: name for name in own if len(seen_values(trials, name)) > 1}
    for column, title in (("gflops_per_image", "GFLOPs per image"), ("latency_ms", "latency (ms)")):
        if any(row[column] is not None for row in trials):
            titles[column] = title
            break  # one cost: the deterministic one where there is one
    titles["fid"] = of_extractor("FID", protocol.extractor)
    axes = [_axis(name, title, [row[name] for row in trials]) for name, title in titles.items()]
    return ParallelInfo(protocol=protocol, rows=trials, axes=axes)


def _axis(name: str, title: str, values: list[Any]) -> ParallelAxis:
    """Place values and ticks on one axis; a missing value stands below it, with its own tick."""
    given = sorted({value for value in values if value is not None})
    if isinstance(given[0] if given else "", str):
        place = {v: _share(i, 0, len(given) - 1) for i, v in enumerate(given)}
        ticks = [(place[v], v if len(v) <= 18 else v[:17] + "…") for v in given]
        positions = [INACTIVE if v is None else place[v] for v in values]
    else:
        wide = name == "fid" and given[-1] >= 10 * given[0]
        log = given[0] > 0 and (wide or name in LOGARITHMIC)
        scale = math.log10 if log else float
        low, high = scale(given[0]), scale(given[-1])
        chosen = given if len(given) <= 6 else _round_values(given[0], given[-1], log=log)
        ticks = [(_share(scale(v), low, high), number(v)) for v in chosen]
        positions = [INACTIVE if v is None else _share(scale(v), low, high) for v in values]
    ticks = _apart(ticks)
    if None in values:
        ticks = [(INACTIVE, "inactive"), *ticks]
    return ParallelAxis(name=name, title=title, ticks=ticks, positions=positions)


def _apart(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The ticks that can be read: both ends and those not too close to the one below."""
    kept = ticks[:1]
    for tick in ticks[1:-1]:
        if tick[0] - kept[-1][0] >= 0.05 and ticks[-1][0] - tick[0] >= 0.05:
            kept.append(tick)
    return [*kept, *ticks[1:][-1:]]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _round_values(low: float, high: float, *, log: bool) -> list[float]:
    """Both ends and the round values well between them: powers of ten, or of a 1-2-5 step."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        factors = (1,) if last - first > 2 else (1, 2, 5)
        inner = [f * 10.0**p for p in range(first, last + 1) for f in factors]
        gap = 0.08 * math.log10(high / low)
        inside = [v for v in inner if v > low * 10**gap and v < high / 10**gap]
    else:
        raw = (high - low) / 4
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw)
        gap = 0.08 * (high - low)
        count = range(math.ceil(low / step), math.floor(high / step) + 1)
        inside = [i * step for i in count if low + gap < i * step < high - gap]
    return [low, *inside, high]
