"""The hypervolume of a frontier: the area of the plane of cost and FID that trials dominate."""

import math
from collections.abc import Iterable
from typing import Any

from srdd.errors import UserError
from srdd_platform.report.columns import METRICS


def hypervolume_reference(
    reference: Any, column: str, metric: str = "fid"
) -> tuple[float, float] | None:
    """``(cost, metric)`` of a sweep's reference point; None if it has not both.

    Args:
        reference: ``hypervolume_reference`` of a config.json: a value for some columns.
        column: of the cost.
        metric: its column.

    Raises:
        UserError: it has another form, or a value is not a number.
    """
    reference = reference or {}
    if not isinstance(reference, dict) or (reference and not METRICS.keys() & reference.keys()):
        raise UserError(
            'hypervolume_reference in config.json must be like {"gflops_per_image": 4, "fid": 9}'
        )
    if column not in reference or metric not in reference:
        return None
    try:
        cost, value = float(reference[column]), float(reference[metric])
    except (TypeError, ValueError):
        cost = value = math.nan
    if not (math.isfinite(value) and math.isfinite(cost) and cost > 0):
        raise UserError(f"hypervolume_reference in config.json must be numbers, {column} above 0")
    return cost, value


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that points (cost, FID) dominate up to the reference, on (log2 cost, FID).

    Points at or beyond the reference, and those that are not finite, add nothing.
    """
    limit, ceiling = math.log2(reference[0]), reference[1]
    inside = sorted(
        (math.log2(cost), fid)
        for cost, fid in points
        if 0 < cost < reference[0] and math.isfinite(fid) and fid < ceiling
    )
    area = 0.0
    for cost, fid in inside:  # cheapest first: each adds the slab below the lowest FID so far
        area += (limit - cost) * max(ceiling - fid, 0.0)
        ceiling = min(ceiling, fid)
    return area
