"""Rows: one evaluated setting each. ``rows/<key>.json`` is the truth, ``trials.parquet`` a view.

A sweep directory holds::

    config.json       the resolved configuration of the sweep
    rows/KEY.json     one finished evaluation, written once and never changed
    trials.parquet    the rows compiled, ordered by ``kind``, ``order`` and ``key``
    grids/KEY.png     a grid of the row's first samples
    report/index.html drawn from the three above
    best/             the pipeline directory of the lowest FID
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from srdd_platform.core.files import atomic_path, read_json, to_json_bytes, write_once
from srdd_platform.evaluation.protocol import FIRST_PROTOCOL, NEW_COLUMNS, PROTOCOL

PARAMETERS = (
    "patch_nums",
    "cfg",
    "cfg_ramp",
    "cfg_window",
    "top_k",
    "top_p",
    "epsilon",
    "refine_steps",
    "resample",
    "resample_threshold",
    "feedback",
)  # the sampler's settings, a column each; null where inactive


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One evaluated setting; null where a column does not apply (real images have no cost)."""

    key: str  # digest of model, active parameters, n, seed, extractor and protocol
    kind: Literal["trial", "reference"]
    name: str  # what a reference row is, e.g. "real held-out"; "" for a trial
    order: int  # references keep the order they were asked in; trials count up
    mask: str | None = None  # the model's attention mask
    patch_nums: str | None = None  # "1,2,3,4"
    cfg: float | None = None
    cfg_ramp: str | None = None
    cfg_window: str | None = None  # "0.0,0.75"
    top_k: int | None = None
    top_p: float | None = None
    epsilon: float | None = None
    refine_steps: int | None = None
    resample: str | None = None
    resample_threshold: float | None = None
    feedback: str | None = None
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


_LISTS: dict[str, type] = {"patch_nums": int, "cfg_window": float}  # written "1,2,4"
_COLUMN = {"inception_score": "is"}  # "is" is a Python keyword


def _arrow_type(annotation: Any) -> pa.DataType:
    """Arrow's type for a field: integers and floats as such, the rest as text."""
    kinds = set(get_args(annotation)) or {annotation}
    return pa.int64() if int in kinds else pa.float64() if float in kinds else pa.string()


SCHEMA = pa.schema((_COLUMN.get(f.name, f.name), _arrow_type(f.type)) for f in fields(Row))
FIRST_SCHEMA = pa.schema(field for field in SCHEMA if field.name not in NEW_COLUMNS)  # of fid@1


def to_json(row: Row) -> dict[str, Any]:
    """A row as JSON: its protocol's columns by their names in the table; a NaN is null."""
    left_out = NEW_COLUMNS if row.protocol == FIRST_PROTOCOL else ()
    values = {_COLUMN.get(k, k): v for k, v in asdict(row).items() if k not in left_out}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def write_row(directory: Path, row: Row) -> Path:
    """Write ``rows/KEY.json`` once; a row that is there already is left byte for byte."""
    path = directory / "rows" / f"{row.key}.json"
    write_once(path, to_json_bytes(to_json(row)))
    return path


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """All finished rows of a sweep directory, in table order."""
    rows = [read_json(path) for path in sorted((directory / "rows").glob("*.json"))]
    return sorted(rows, key=lambda row: (row["kind"], row["order"], row["key"]))


def compile_table(directory: Path) -> pd.DataFrame:
    """Compile ``trials.parquet`` from ``rows/`` atomically and return it."""
    rows = read_rows(directory)
    first = bool(rows) and all("protocol" not in row for row in rows)
    table = pa.Table.from_pylist(rows, schema=FIRST_SCHEMA if first else SCHEMA)
    with atomic_path(directory / "trials.parquet") as temporary:
        pq.write_table(table, temporary)
    return read_table(directory)


def settings_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's active sampler settings as a :class:`srdd.SamplerConfig` takes them."""
    values = {name: row.get(name) for name in PARAMETERS}
    found = {k: v for k, v in values.items() if v is not None}
    for name, kind in _LISTS.items():
        if name in found:
            found[name] = [kind(part) for part in found[name].split(",")]
    return found


def read_table(directory: Path) -> pd.DataFrame:
    """Read ``trials.parquet`` as a frame: a column for each of its protocol's."""
    return pd.read_parquet(directory / "trials.parquet")


def frontier(table: pd.DataFrame, cost: str = "gflops_per_image") -> pd.DataFrame:
    """The trials that no other trial beats in both FID and cost, cheapest first."""
    good = table[(table.kind == "trial") & (table.status == "ok")].dropna(subset=["fid", cost])
    ordered = good.sort_values([cost, "fid"])
    return ordered[ordered["fid"] < ordered["fid"].cummin().shift(fill_value=math.inf)]
