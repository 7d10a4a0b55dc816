"""The facts of parallel coordinates: the trials over the settings that vary, a cost, a metric."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from srdd_platform.evaluation.rows import model_columns
from srdd_platform.report.columns import COSTS, METRICS
from srdd_platform.report.data import Protocol, one_protocol, seen_values, usable
from srdd_platform.report.frontier import USUAL_COSTS
from srdd_platform.report.setup import Setup
from srdd_platform.report.specs import Parallel
from srdd_platform.report.ticks import apart, round_values, share
from srdd_platform.report.wording import Record, number, of_extractor

INACTIVE = -0.14  # where a parallel axis shows a setting that did not act; others lie in [0, 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelAxis:
    """One axis: where its ticks are and where each row crosses it."""

    name: str
    title: str
    ticks: list[tuple[float, str]]
    positions: list[float]  # a row each, in [0, 1] or INACTIVE


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelInfo:
    """The finished trials as lines over the searched settings, a cost and a metric."""

    protocol: Protocol
    metric: str
    rows: list[Record]
    axes: list[ParallelAxis]  # the last is the metric's


def parallel_info(rows: Iterable[Record], figure: Parallel, setup: Setup) -> ParallelInfo:
    """The settings that vary, a cost and the metric of every finished trial as parallel axes.

    Raises:
        UserError: no trial has finished, or they were not measured alike.
    """
    rows = list(rows)
    protocol = one_protocol(rows)
    trials = usable(rows, "trial", figure.metric)
    names = model_columns(trials[0]) if trials else []
    axes = []
    for name in names:
        if len(seen_values(trials, name)) > 1:
            values = [row[name] for row in trials]
            log = setup.is_log(name, values)
            axes.append(_axis(name, name, values, log=log, null=setup.null_text(name)))
    for column in USUAL_COSTS if figure.cost is None else (figure.cost,):
        values = [row[column] for row in trials]
        if any(value is not None for value in values):
            axes.append(_axis(column, COSTS[column].title, values, log=True))
            break  # one cost: the deterministic one where there is one
    metric = METRICS[figure.metric]
    values = [row[figure.metric] for row in trials]
    log = not metric.higher_is_better and bool(values) and max(values) >= 10 * min(values) > 0
    title = of_extractor(metric.title, protocol.extractor)
    axes.append(_axis(figure.metric, title, values, log=log))
    return ParallelInfo(protocol=protocol, metric=figure.metric, rows=trials, axes=axes)


def _axis(
    name: str, title: str, values: list[Any], *, log: bool, null: str = "inactive"
) -> ParallelAxis:
    """Place values and ticks on one axis; a missing value stands below it, with its own tick.

    Args:
        name: of the column.
        title: of the axis.
        values: one a row.
        log: whether numbers stand at their logarithms; not where one of them is not positive.
        null: what a missing value is called.
    """
    given = sorted({value for value in values if value is not None})
    if isinstance(given[0] if given else "", str):
        place = {v: share(i, 0, len(given) - 1) for i, v in enumerate(given)}
        ticks = [(place[v], v if len(v) <= 18 else v[:17] + "…") for v in given]
        positions = [INACTIVE if v is None else place[v] for v in values]
    else:
        log = log and given[0] > 0
        scale = math.log10 if log else float
        low, high = scale(given[0]), scale(given[-1])
        chosen = given if len(given) <= 6 else round_values(given[0], given[-1], log=log)
        ticks = [(share(scale(v), low, high), number(v)) for v in chosen]
        positions = [INACTIVE if v is None else share(scale(v), low, high) for v in values]
    ticks = apart(ticks)
    if None in values:
        ticks = [(INACTIVE, null), *ticks]
    return ParallelAxis(name=name, title=title, ticks=ticks, positions=positions)
