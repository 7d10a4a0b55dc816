"""Rows: written once, compiled into a table of fixed columns, and the frontier among them."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srdd.errors import UserError
from srdd_platform.evaluation.rows import (
    SCHEMA,
    Row,
    compile_table,
    frontier,
    read_rows,
    read_table,
    to_json,
    write_row,
)


def row(key: str, **values: Any) -> Row:
    return Row(**{"key": key, "kind": "trial", "name": "", "order": 0, **values})


def test_a_finished_row_is_never_rewritten(tmp_path: Path) -> None:
    path = write_row(tmp_path, row("a", fid=1.0))
    assert path == tmp_path / "rows" / "a.json"
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    assert write_row(tmp_path, row("a", fid=2.0, order=7)) == path
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert [r["fid"] for r in read_rows(tmp_path)] == [1.0]


def test_compiling_leaves_the_rows_alone(tmp_path: Path) -> None:
    path = write_row(tmp_path, row("a", fid=1.0))
    before = path.read_bytes(), path.stat().st_mtime_ns
    compile_table(tmp_path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    path = write_row(tmp_path, row("a", fid=value, kid=-0.5, nfe=0.0))
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = json.loads(text)
    assert found["fid"] is None
    assert found["kid"] == -0.5
    assert found["nfe"] == 0.0
    table = compile_table(tmp_path)
    assert table["fid"].isna().all()
    assert pq.read_table(tmp_path / "trials.parquet")["fid"].null_count == 1


def test_the_inception_score_is_column_is() -> None:
    found = to_json(row("a", inception_score=9.5))
    assert found["is"] == 9.5
    assert "inception_score" not in found


def test_the_columns_and_their_types_are_fixed(tmp_path: Path) -> None:
    write_row(tmp_path, row("a"))
    compile_table(tmp_path)
    schema = pq.read_schema(tmp_path / "trials.parquet")
    assert schema.names == SCHEMA.names
    wanted = (
        "kind patch_nums cfg cfg_ramp top_k top_p refine_steps resample resample_threshold "
        "feedback fid is kid precision recall n extractor fid_se nfe gflops_per_image latency_ms "
        "images_per_s peak_memory_mb seed status error"
    )
    assert set(wanted.split()) <= set(schema.names)
    types = {name: schema.field(name).type for name in schema.names}
    for name in ("order", "n", "seed", "refine_steps", "top_k", "batch_size"):
        assert types[name] == pa.int64(), name
    for name in ("cfg", "fid", "is", "nfe", "gflops_per_image", "resample_threshold", "accuracy"):
        assert types[name] == pa.float64(), name
    for name in ("key", "kind", "patch_nums", "feedback", "status", "error", "extractor"):
        assert types[name] == pa.string(), name


def test_the_types_hold_where_a_column_is_empty_or_whole(tmp_path: Path) -> None:
    """A column of nulls, or floats that happen to be integers, keeps its type."""
    write_row(tmp_path, row("a", cfg=3, refine_steps=2, seed=None))
    table = compile_table(tmp_path)
    assert pq.read_schema(tmp_path / "trials.parquet").equals(SCHEMA, check_metadata=False)
    assert table["cfg"].tolist() == [3.0]
    assert table["cfg"].dtype == "float64"


def test_the_table_is_ordered_by_kind_order_and_key(tmp_path: Path) -> None:
    made = [
        row("d", order=10),
        row("c", order=2),
        row("b", order=2),
        row("a", kind="reference", name="x", order=5),
        row("e", kind="reference", name="y", order=0),
    ]
    for one in made:
        write_row(tmp_path, one)
    table = compile_table(tmp_path)
    assert table["key"].tolist() == ["e", "a", "b", "c", "d"]
    assert read_table(tmp_path)["key"].tolist() == table["key"].tolist()


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for key in ("b", "a", "c"):
        write_row(tmp_path, row(key, fid=1.5))
    compile_table(tmp_path)
    first = (tmp_path / "trials.parquet").read_bytes()
    compile_table(tmp_path)
    assert (tmp_path / "trials.parquet").read_bytes() == first


def test_a_leftover_of_a_killed_writer_is_no_row(tmp_path: Path) -> None:
    write_row(tmp_path, row("a"))
    (tmp_path / "rows" / ".b.json.0123abcd.tmp").write_text('{"key": "b"')
    assert [r["key"] for r in read_rows(tmp_path)] == ["a"]


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    write_row(tmp_path, row("a"))
    (tmp_path / "rows" / "a.json").write_text('{"key": ')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_rows(tmp_path)


def test_no_rows_yet(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []
    assert len(compile_table(tmp_path)) == 0


def table_of(points: list[tuple[float | None, float | None]], **values: Any) -> pd.DataFrame:
    rows = [
        to_json(row(f"k{i}", fid=fid, gflops_per_image=cost, **values))
        for i, (cost, fid) in enumerate(points)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()


def test_the_frontier_holds_what_no_other_beats() -> None:
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 5.0), (2.0, 3.0), (1.0, 6.0), (4.0, 1.0), (5.0, 0.0)]
    found = frontier(table_of(points))
    assert found["key"].tolist() == ["k1", "k3", "k0", "k6"]


def test_the_frontier_leaves_out_references_failures_and_gaps() -> None:
    table = table_of([(1.0, 9.0), (0.5, 0.1), (0.4, 0.1), (0.3, None), (None, 0.1)])
    table.loc[1, "kind"] = "reference"
    table.loc[2, "status"] = "failed"
    assert frontier(table)["key"].tolist() == ["k0"]


def test_the_frontier_takes_another_cost() -> None:
    table = table_of([(1.0, 2.0), (2.0, 1.0)])
    table["latency_ms"] = [9.0, 3.0]
    assert frontier(table, "latency_ms")["key"].tolist() == ["k1"]


def test_an_empty_table_has_an_empty_frontier() -> None:
    assert len(frontier(table_of([]))) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_frontier_is_what_the_definition_says(points: list[tuple[int, int]]) -> None:
    found = frontier(table_of([(float(cost), float(fid)) for cost, fid in points]))
    pairs = set(points)
    beaten = {
        (cost, fid)
        for cost, fid in pairs
        if any(c <= cost and f <= fid and (c, f) != (cost, fid) for c, f in pairs)
    }
    shown = list(zip(found["gflops_per_image"], found["fid"], strict=True))
    assert shown == sorted(pairs - beaten)  # each once, cheapest first
