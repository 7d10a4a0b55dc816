"""A sweep in numbers: what was searched, what was held, and the best trial."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srdd_platform.evaluation.rows import model_columns
from srdd_platform.report.columns import better_sign
from srdd_platform.report.data import SweepData, protocol_of, protocols, seen_values, usable
from srdd_platform.report.wording import Record, number


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


def overview(sweep: SweepData) -> Overview:
    """Counts, what was searched and what was held, and the best trial of the main protocol."""
    trials = [row for row in sweep.rows if row["kind"] == "trial"]
    main = protocols(trials)[:1]
    comparable = [row for row in usable(trials, "trial") if protocol_of(row) in main]
    finished = [row for row in trials if row["status"] == "ok"] or trials
    own = model_columns(finished[0]) if finished else []
    seen = {name: seen_values(finished, name) for name in own}
    texts = {n: _range_text(v, sweep.setup.null_text(n)) for n, v in seen.items() if len(v) > 1}
    return Overview(
        trials=len(trials),
        finished=sum(row["status"] == "ok" for row in trials),
        failed=sum(row["status"] == "failed" for row in trials),
        searched=texts,
        fixed={n: number(v[0]) for n, v in seen.items() if len(v) == 1 and v[0] is not None},
        extractors=sorted({row["extractor"] for row in sweep.rows if row["extractor"]}),
        best=min(comparable, key=lambda row: _rank(row, sweep.setup.objectives), default=None),
        best_rule=sweep.setup.best_rule,
    )


def _rank(row: Record, objectives: Sequence[str]) -> tuple[Any, ...]:
    """The lower, the better: by the first objective, then by the next ones, then by the key."""
    values = [better_sign(name) * v if (v := row[name]) is not None else math.inf
              for name in objectives]  # fmt: skip
    return (*values, row["key"])


def _range_text(values: list[Any], null: str) -> str:
    """Up to six values in full, more numbers as a range; ``null`` is what None means."""
    given = [value for value in values if value is not None]
    or_null = f" or {null}" if None in values else ""
    if len(given) > 6 and not isinstance(given[0], str):
        return f"{number(given[0])} to {number(given[-1])}{or_null}"
    return ", ".join(number(value) for value in given) + or_null
