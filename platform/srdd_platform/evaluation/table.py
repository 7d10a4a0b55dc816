"""The table of a sweep: its rows compiled into ``trials.parquet``."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from srdd_platform.core.files import atomic_path
from srdd_platform.evaluation.protocol import NEW_COLUMNS
from srdd_platform.evaluation.rows import COLUMNS, Row, model_columns, read_rows


def _arrow_type(hint: Any) -> pa.DataType:
    """Arrow's type for a field: numbers and booleans as such, all else as text."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    known = ((float, pa.float64()), (int, pa.int64()), (bool, pa.bool_()))
    return next((arrow for kind, arrow in known if kind in options), pa.string())


def _types(kind: type[Any]) -> dict[str, pa.DataType]:
    """Arrow's type for each field of a dataclass."""
    hints = get_type_hints(kind)
    return {f.name: _arrow_type(hints[f.name]) for f in fields(kind)}


COLUMN_TYPES = {name: _types(Row)[field] for name, field in COLUMNS.items()}
_BEFORE = tuple(COLUMNS)[: tuple(COLUMNS).index("n")]  # the columns before those of the model


def table_schema(
    rows: Iterable[Mapping[str, Any]], settings_type: type[Any] | None = None
) -> pa.Schema:
    """The columns of a table of rows, and their types.

    Args:
        rows: as :func:`srdd_platform.evaluation.rows.to_json` makes them.
        settings_type: the dataclass of the sampler's settings: its columns have its types even
            where all values are null. Without it, the types are those of the values.
    """
    rows = list(rows)
    known = {} if settings_type is None else _types(settings_type)
    found = {name: None for row in rows for name in model_columns(row) if name not in known}
    own = {name: _seen_type([row.get(name) for row in rows]) for name in found} | known
    first = bool(rows) and all("protocol" not in row for row in rows)
    before = {name: COLUMN_TYPES[name] for name in _BEFORE}
    columns = {**before, **own, **COLUMN_TYPES}
    return pa.schema([c for c in columns.items() if not (first and c[0] in NEW_COLUMNS)])


def _seen_type(values: list[Any]) -> pa.DataType:
    """Arrow's type for values; text where all are null."""
    found = pa.infer_type(values)
    return pa.string() if pa.types.is_null(found) else found


def compile_table(directory: Path, settings_type: type[Any] | None = None) -> pd.DataFrame:
    """Compile ``trials.parquet`` from ``rows/`` atomically and return it.

    Args:
        directory: of the sweep.
        settings_type: as for :func:`table_schema`.
    """
    rows = read_rows(directory)
    table = pa.Table.from_pylist(rows, schema=table_schema(rows, settings_type))
    with atomic_path(directory / "trials.parquet") as temporary:
        pq.write_table(table, temporary)
    return read_table(directory)


def read_table(directory: Path) -> pd.DataFrame:
    """Read ``trials.parquet`` as a frame: a column for each of its protocol's."""
    return pd.read_parquet(directory / "trials.parquet")
