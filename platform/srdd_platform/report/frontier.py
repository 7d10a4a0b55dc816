"""The facts of a frontier: a metric against a cost, for trials that compare, and references."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from srdd.errors import UserError
from srdd_platform.evaluation.rows import frontier
from srdd_platform.report.columns import COSTS, HIGHER_IS_BETTER, METRICS, better_sign
from srdd_platform.report.data import Protocol, protocol_of, usable
from srdd_platform.report.hypervolume import hypervolume, hypervolume_reference
from srdd_platform.report.setup import Setup
from srdd_platform.report.wording import Record, fingerprint_text, label, model_text, number

USUAL_COSTS = ("gflops_per_image", "latency_ms")  # of sampling; a row without both made no images


@dataclass(frozen=True, kw_only=True, slots=True)
class CostAxis:
    """A cost that a metric is drawn against; a measured one belongs to one device and dtype."""

    column: str
    title: str
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierInfo:
    """A metric against one cost, for rows that may be compared."""

    axis: CostAxis
    metric: str
    protocol: Protocol
    trials: list[Record]  # lowest cost first
    frontier: list[Record]  # those no other trial beats in both, cheapest first
    models: dict[str, list[Record]]  # the trials by the model that made them
    references: list[Record]  # have this cost: markers
    lines: list[Record]  # have no cost at all (real images): horizontal lines
    hypervolume: float | None
    hypervolume_reference: tuple[float, float] | None  # (cost, metric)
    no_hypervolume: str  # why there is none
    notes: list[str]


def cost_axes(
    rows: Iterable[Record], cost: str | None = None, metric: str = "fid"
) -> list[CostAxis]:
    """The cost axes the trials can be drawn on, one a device and dtype for measured costs.

    Args:
        rows: of a sweep.
        cost: a column; None takes GFLOPs and latency.
        metric: what is drawn against the cost.
    """
    trials = usable(rows, "trial", metric)
    axes = []
    for column in USUAL_COSTS if cost is None else (cost,):
        costed = [row for row in trials if _positive(row[column])]
        if not COSTS[column].measured:
            axes += [CostAxis(column=column, title=COSTS[column].title)] if costed else []
            continue
        title = "latency in ms, one image" if column == "latency_ms" else COSTS[column].title
        axes += [
            CostAxis(column=column, title=f"{title} ({text})", fingerprint=text)
            for text in sorted({fingerprint_text(row) for row in costed})
        ]
    return axes


def _positive(value: Any) -> bool:
    return value is not None and value > 0


def frontier_info(
    rows: Iterable[Record], axis: CostAxis, setup: Setup, metric: str = "fid"
) -> FrontierInfo:
    """A metric against a cost: the trials, those not dominated, and the references beside them.

    Raises:
        UserError: no trial has this cost, the trials' FIDs were not measured alike, or a
            measured cost comes from more than one device or dtype.
    """
    rows = list(rows)
    costed = [row for row in usable(rows, "trial", metric) if _positive(row[axis.column])]
    protocol, place = _comparable(costed, axis.column)
    markers, lines, notes = _references(rows, axis, metric, protocol, place)
    reference = hypervolume_reference(setup.hypervolume_reference, axis.column, metric)
    named = setup.model_columns(costed[0])
    models: dict[str, list[Record]] = {}
    trials = sorted(costed, key=lambda row: (row[axis.column], row[metric], row["key"]))
    for row in trials:
        models.setdefault(model_text(row, named), []).append(row)
    return FrontierInfo(
        axis=axis,
        metric=metric,
        protocol=protocol,
        trials=trials,
        frontier=[*map(dict, frontier(costed, axis.column, metric, HIGHER_IS_BETTER))],
        models=dict(sorted(models.items())),
        references=markers,
        lines=lines,
        hypervolume=_hypervolume(costed, axis.column, metric, reference),
        hypervolume_reference=reference,
        no_hypervolume=_no_hypervolume(setup, axis.column, metric),
        notes=notes,
    )


def _comparable(costed: list[Record], cost: str) -> tuple[Protocol, str]:
    """What trials that have a cost share: their protocol, and where they were measured.

    Raises:
        UserError: there are none, or they do not share one.
    """
    together = sorted({protocol_of(row) for row in costed})
    if not together:
        raise UserError(f"no finished trial has {cost}: there is no frontier to draw")
    if len(together) > 1:
        raise UserError(
            "one frontier needs one extractor, number of images and reference; "
            f"these trials have: {' | '.join(map(str, together))}"
        )
    places = sorted({fingerprint_text(row) for row in costed})
    if COSTS[cost].measured and len(places) > 1:
        raise UserError(
            f"one frontier over {cost} needs one device and dtype; "
            f"these trials have: {' | '.join(places)}"
        )
    return together[0], places[0]


def _hypervolume(
    rows: list[Record], cost: str, metric: str, reference: tuple[float, float] | None
) -> float | None:
    """The hypervolume of rows; where high values are better, that of 1/cost and of -metric."""
    if reference is None:
        return None
    of_cost, of_metric = better_sign(cost), better_sign(metric)
    points = [(row[cost] ** of_cost, of_metric * row[metric]) for row in rows]
    return hypervolume(points, (reference[0] ** of_cost, of_metric * reference[1]))


def _references(
    rows: list[Record], axis: CostAxis, metric: str, protocol: Protocol, place: str
) -> tuple[list[Record], list[Record], list[str]]:
    """Reference rows to draw as markers, as lines, and why the others are left out."""
    markers, lines, notes = [], [], []
    for row in usable(rows, "reference", metric):
        own = protocol_of(row)
        costless = all(row[name] is None for name in USUAL_COSTS)
        if (own.extractor, own.reference) != (protocol.extractor, protocol.reference):
            notes.append(f"{label(row)} is not drawn: measured as {own}.")
        elif costless:
            lines.append(row)
            if own.n != protocol.n:
                notes.append(_fewer_text(row, protocol))
        elif own.n != protocol.n:
            notes.append(f"{label(row)} is not drawn: n={own.n:,}, the trials n={protocol.n:,}.")
        elif not _positive(row[axis.column]):
            notes.append(f"{label(row)} is not drawn: it has no {axis.column}.")
        elif COSTS[axis.column].measured and fingerprint_text(row) != place:
            notes.append(f"{label(row)} is not drawn: timed on {fingerprint_text(row)}.")
        else:
            markers.append(row)
    return markers, lines, notes


def _fewer_text(row: Record, protocol: Protocol) -> str:
    """Why a row's metrics are not quite those of the trials."""
    return (
        f"{label(row)} is measured on n={row['n']:,}, the trials on n={protocol.n:,}: FID reads "
        "higher on fewer images."
    )


def hypervolume_text(info: FrontierInfo) -> str:
    """The hypervolume with its reference, or why there is none."""
    column, title = info.axis.column, METRICS[info.metric].title
    if info.hypervolume is None or info.hypervolume_reference is None:
        return f"Hypervolume: not computed, {info.no_hypervolume}."
    cost, value = info.hypervolume_reference
    return (
        f"Hypervolume of the trials on (log2 {column}, {title}) up to the reference "
        f"({number(cost)}, {number(value)}): {number(info.hypervolume)}."
    )


def _no_hypervolume(setup: Setup, column: str, metric: str) -> str:
    """Why a frontier has no hypervolume, if it has none."""
    reference = setup.hypervolume_reference or {}
    lacking = [name for name in (column, metric) if name not in reference]
    text = f"the configuration sets no reference {' and '.join(lacking)}"
    if reference:
        return text
    higher = [name for name in setup.objectives if name in HIGHER_IS_BETTER]
    if higher:
        return f"{text}: a sweep sets one where low values of all its objectives are better"
    return f"{text}: no reference row has finished with the settings of the first trial"
