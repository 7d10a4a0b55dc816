"""Rows: one evaluated setting each. ``rows/<key>.json`` is the truth, ``trials.parquet`` a view.

This module imports neither pandas nor Arrow: :mod:`srdd_platform.evaluation.table` has the view.

A sweep directory holds::

    config.json       the resolved configuration of the sweep
    rows/KEY.json     one finished evaluation, written once and never changed
    trials.parquet    the rows compiled, ordered by ``kind``, ``order`` and ``key``
    grids/KEY.png     a grid of the row's first samples
    report/index.html drawn from the three above
    best/             the pipeline directory of the lowest FID

A row has columns of its own (:class:`Row`), and between ``order`` and ``n`` those of its model:
one for each of the model's tags and one for each setting of its sampler.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from srdd_platform.core.files import read_json, to_json_bytes, write_once
from srdd_platform.evaluation.protocol import FIRST_PROTOCOL, NEW_COLUMNS, PROTOCOL


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One evaluated setting; null where a column does not apply (real images have no cost)."""

    key: str  # digest of model, active settings, n, seed, extractor and protocol
    kind: Literal["trial", "reference"]
    name: str  # what a reference row is, e.g. "real held-out"; "" for a trial
    order: int  # references keep the order they were asked in; trials count up
    tags: Mapping[str, str | None] = field(default_factory=dict)  # a column each: {"mask": ...}
    settings: Mapping[str, Any] = field(default_factory=dict)  # a column each: settings_columns()
    n: int = 0  # images
    seed: int | None = None
    extractor: str = ""  # whose features: an FID means nothing without it
    reference: str = ""  # the images compared with, e.g. "train n=1437"
    fid: float | None = None
    fid_se: float | None = None  # delete-one-block jackknife over 10 class-balanced blocks
    inception_score: float | None = None  # column "is" in the table
    kid: float | None = None  # without the bias of balanced classes; kid_raw is torch-fidelity's
    kid_raw: float | None = None
    precision: float | None = None
    recall: float | None = None
    accuracy: float | None = None  # share classified as the class asked for
    nfe: float | None = None  # network evaluations an image; guidance's second half counts
    gflops_per_image: float | None = None  # of the loop really run, decoder included
    latency_ms: float | None = None  # one image, decoder included, median
    images_per_s: float | None = None  # at batch_size
    peak_memory_mb: float | None = None
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = None
    status: Literal["ok", "failed"] = "ok"
    error: str | None = None  # one line, for failed rows
    protocol: str = PROTOCOL  # how quality is measured; fid@1 has neither this column nor kid_raw


_COLUMN = {"inception_score": "is"}  # "is" is a Python keyword
_OF_MODEL = ("tags", "settings")  # fields of a row that hold several columns


COLUMNS = {_COLUMN.get(f.name, f.name): f.name for f in fields(Row) if f.name not in _OF_MODEL}


def model_columns(columns: Iterable[str]) -> list[str]:
    """The columns of the model among those of a row or a table: its tags and settings."""
    return [name for name in columns if name not in COLUMNS]


def settings_columns(config: Any) -> dict[str, Any]:
    """The columns of a sampler's settings: inactive ones are null, a tuple is text, "1,2,3,4"."""
    active = config.active()
    values = {f.name: active.get(f.name) for f in fields(config)}
    return {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in values.items()}


def settings_of(row: Mapping[str, Any], settings_type: type[Any]) -> dict[str, Any]:
    """A row's active settings, as the constructor of the sampler's dataclass takes them."""
    hints = get_type_hints(settings_type)
    names = [f.name for f in fields(settings_type) if row.get(f.name) is not None]
    return {name: _from_cell(hints[name], row[name]) for name in names}


def _from_cell(hint: Any, value: Any) -> Any:
    """The value that a cell of :func:`settings_columns` stands for."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    lists = [option for option in options if get_origin(option) is tuple]
    if not lists or not isinstance(value, str):
        return value
    return tuple(get_args(lists[0])[0](part) for part in value.split(","))


def to_json(row: Row) -> dict[str, Any]:
    """A row as JSON: its protocol's columns by their names in the table; a NaN is null."""
    values: dict[str, Any] = {}
    for name in (f.name for f in fields(row)):
        value = getattr(row, name)
        if name in _OF_MODEL:
            values |= value
        elif row.protocol != FIRST_PROTOCOL or name not in NEW_COLUMNS:
            values[_COLUMN.get(name, name)] = value
    if taken := sorted(COLUMNS.keys() & {*row.tags, *row.settings}):
        raise ValueError(f"a sampler's setting cannot be called {taken[0]}: rows have that column")
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def row_path(directory: Path, key: str) -> Path:
    """Where the row of a key is."""
    return directory / "rows" / f"{key}.json"


def write_row(directory: Path, row: Row) -> Path:
    """Write ``rows/KEY.json`` once; a row that is there already is left byte for byte."""
    path = row_path(directory, row.key)
    write_once(path, to_json_bytes(to_json(row)))
    return path


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """All finished rows of a sweep directory, in table order."""
    rows = [read_json(path) for path in sorted((directory / "rows").glob("*.json"))]
    return sorted(rows, key=lambda row: (row["kind"], row["order"], row["key"]))


def frontier(
    rows: Iterable[Mapping[str, Any]],
    cost: str = "gflops_per_image",
    metric: str = "fid",
    higher_is_better: Collection[str] = (),
) -> list[Mapping[str, Any]]:
    """The trials that no other trial beats in both a metric and a cost, cheapest first.

    Args:
        rows: of a sweep.
        cost: a column.
        metric: a column.
        higher_is_better: the columns whose high values are better.
    """
    of_cost, of_metric = (-1 if name in higher_is_better else 1 for name in (cost, metric))
    good = [row for row in rows if row["kind"] == "trial" and row["status"] == "ok"]
    measured = [row for row in good if _is_number(row[metric]) and _is_number(row[cost])]
    found: list[Mapping[str, Any]] = []
    for row in sorted(measured, key=lambda row: (of_cost * row[cost], of_metric * row[metric])):
        if not found or of_metric * row[metric] < of_metric * found[-1][metric]:
            found.append(row)
    return found


def _is_number(value: float | None) -> bool:
    return value is not None and value == value
