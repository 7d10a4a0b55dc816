"""Rows: written once, compiled into a table of fixed columns, and the frontier among them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from var_rows import NAMES, SETTINGS, var_row

from srdd import SamplerConfig
from srdd.errors import UserError
from srdd_platform.evaluation.rows import (
    Row,
    frontier,
    model_columns,
    read_rows,
    settings_columns,
    settings_of,
    to_json,
    write_row,
)
from srdd_platform.evaluation.table import compile_table, read_table, table_schema

SCHEMA = table_schema([to_json(var_row("a"))], SamplerConfig)


def test_a_finished_row_is_never_rewritten(tmp_path: Path) -> None:
    path = write_row(tmp_path, var_row("a", fid=1.0))
    assert path == tmp_path / "rows" / "a.json"
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    assert write_row(tmp_path, var_row("a", fid=2.0, order=7)) == path
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert [r["fid"] for r in read_rows(tmp_path)] == [1.0]


def test_compiling_leaves_the_rows_alone(tmp_path: Path) -> None:
    path = write_row(tmp_path, var_row("a", fid=1.0))
    before = path.read_bytes(), path.stat().st_mtime_ns
    compile_table(tmp_path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    path = write_row(tmp_path, var_row("a", fid=value, kid=-0.5, nfe=0.0))
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
    found = to_json(var_row("a", inception_score=9.5))
    assert found["is"] == 9.5
    assert "inception_score" not in found


def test_the_columns_and_their_types_are_fixed(tmp_path: Path) -> None:
    write_row(tmp_path, var_row("a"))
    compile_table(tmp_path, SamplerConfig)
    schema = pq.read_schema(tmp_path / "trials.parquet")
    assert schema.names == NAMES
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
    for name in ("key", "kind", "mask", "patch_nums", "cfg_window", "feedback", "status", "error"):
        assert types[name] == pa.string(), name


def test_the_types_hold_where_a_column_is_empty_or_whole(tmp_path: Path) -> None:
    """A column of nulls, or floats that happen to be integers, keeps its type."""
    write_row(tmp_path, var_row("a", cfg=3, refine_steps=2, seed=None))
    table = compile_table(tmp_path, SamplerConfig)
    assert pq.read_schema(tmp_path / "trials.parquet").equals(SCHEMA, check_metadata=False)
    assert table["cfg"].tolist() == [3.0]
    assert table["cfg"].dtype == "float64"


def test_the_table_is_ordered_by_kind_order_and_key(tmp_path: Path) -> None:
    made = [
        var_row("d", order=10),
        var_row("c", order=2),
        var_row("b", order=2),
        var_row("a", kind="reference", name="x", order=5),
        var_row("e", kind="reference", name="y", order=0),
    ]
    for one in made:
        write_row(tmp_path, one)
    table = compile_table(tmp_path)
    assert table["key"].tolist() == ["e", "a", "b", "c", "d"]
    assert read_table(tmp_path)["key"].tolist() == table["key"].tolist()


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for key in ("b", "a", "c"):
        write_row(tmp_path, var_row(key, fid=1.5))
    compile_table(tmp_path)
    first = (tmp_path / "trials.parquet").read_bytes()
    compile_table(tmp_path)
    assert (tmp_path / "trials.parquet").read_bytes() == first


def test_a_leftover_of_a_killed_writer_is_no_row(tmp_path: Path) -> None:
    write_row(tmp_path, var_row("a"))
    (tmp_path / "rows" / ".b.json.0123abcd.tmp").write_text('{"key": "b"')
    assert [r["key"] for r in read_rows(tmp_path)] == ["a"]


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    write_row(tmp_path, var_row("a"))
    (tmp_path / "rows" / "a.json").write_text('{"key": ')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_rows(tmp_path)


def test_no_rows_yet(tmp_path: Path) -> None:
    assert read_rows(tmp_path) == []
    assert len(compile_table(tmp_path)) == 0


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The sampler's settings of another family."""

    steps: int = 8
    eta: float = 0.0
    stochastic: bool = False
    times: tuple[float, ...] | None = None
    solver: Literal["euler", "heun"] = "euler"

    def active(self) -> dict[str, Any]:
        values = asdict(self)
        return values if self.stochastic else {k: v for k, v in values.items() if k != "eta"}


def test_rows_of_another_family_have_its_own_columns(tmp_path: Path) -> None:
    made = [Steps(times=(0.5, 1.0)), Steps(stochastic=True, steps=2, eta=1.0)]
    for order, config in enumerate(made):
        values = {"tags": {"family": "toy"}, "settings": settings_columns(config), "fid": 1.0}
        write_row(tmp_path, Row(key=f"k{order}", kind="trial", name="", order=order, **values))
    rows = read_rows(tmp_path)
    own = ["family", "steps", "eta", "stochastic", "times", "solver"]
    assert model_columns(rows[0]) == own
    assert list(rows[0])[:11] == ["key", "kind", "name", "order", *own, "n"]
    assert [rows[0][name] for name in own] == ["toy", 8, None, False, "0.5,1.0", "euler"]
    assert [Steps(**settings_of(row, Steps)) for row in rows] == made
    typed = {
        "family": pa.string(), "steps": pa.int64(), "eta": pa.float64(), "stochastic": pa.bool_(),
        "times": pa.string(), "solver": pa.string(),
    }  # fmt: skip
    for known in (Steps, None):
        assert compile_table(tmp_path, known)["fid"].tolist() == [1.0, 1.0]
        schema = pq.read_schema(tmp_path / "trials.parquet")
        assert schema.names[4:10] == own
        assert {name: schema.field(name).type for name in own} == typed


def test_a_type_that_is_known_holds_where_no_row_has_a_value() -> None:
    row = to_json(Row(key="k", kind="trial", name="", order=0, settings={"steps": None}))
    assert table_schema([row], Steps).field("steps").type == pa.int64()
    assert table_schema([row], Steps).field("eta").type == pa.float64()
    assert table_schema([row]).field("steps").type == pa.string()


@pytest.mark.parametrize("part", ["tags", "settings"])
def test_a_setting_cannot_take_the_place_of_a_column(part: str) -> None:
    with pytest.raises(ValueError, match="cannot be called fid"):
        to_json(Row(key="k", kind="trial", name="", order=0, **{part: {"x": 1, "fid": 2}}))


def test_the_settings_of_a_row_come_back() -> None:
    config = SamplerConfig(cfg=1.0, cfg_ramp="window", cfg_window=(0.0, 0.5), patch_nums=(1, 4))
    found = settings_of(settings_columns(config), SamplerConfig)
    assert found == config.active()
    assert found["cfg_window"] == (0.0, 0.5)
    assert found["patch_nums"] == (1, 4)
    assert list(settings_columns(config)) == list(SETTINGS)


def rows_of(points: list[tuple[float | None, float | None]]) -> list[dict[str, Any]]:
    return [
        to_json(var_row(f"k{i}", fid=fid, gflops_per_image=cost))
        for i, (cost, fid) in enumerate(points)
    ]


def keys(rows: list[Mapping[str, Any]]) -> list[str]:
    return [row["key"] for row in rows]


def test_the_frontier_holds_what_no_other_beats() -> None:
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 5.0), (2.0, 3.0), (1.0, 6.0), (4.0, 1.0), (5.0, 0.0)]
    assert keys(frontier(rows_of(points))) == ["k1", "k3", "k0", "k6"]


def test_the_frontier_leaves_out_references_failures_and_gaps() -> None:
    nan = float("nan")  # as Tune reports what a failed trial lacks
    rows = rows_of([(1.0, 9.0), (0.5, 0.1), (0.4, 0.1), (0.3, None), (None, 0.1), (0.2, nan)])
    rows[1]["kind"] = "reference"
    rows[2]["status"] = "failed"
    assert keys(frontier(rows)) == ["k0"]
    assert keys(frontier([{**row, "fid": row["fid"] or nan} for row in rows])) == ["k0"]


def test_the_frontier_takes_another_cost() -> None:
    rows = rows_of([(1.0, 2.0), (2.0, 1.0)])
    rows[0]["latency_ms"], rows[1]["latency_ms"] = 9.0, 3.0
    assert keys(frontier(rows, "latency_ms")) == ["k1"]


def test_the_frontier_takes_another_metric_whose_high_values_are_better() -> None:
    rows = rows_of([(1.0, 2.0), (2.0, 1.0), (3.0, 3.0)])
    for row, accuracy, speed in zip(rows, (0.7, 0.7, 0.9), (5.0, 5.0, 8.0), strict=True):
        row["accuracy"], row["images_per_s"] = accuracy, speed
    assert keys(frontier(rows, metric="accuracy")) == ["k0"]  # the lowest accuracy, no other
    assert keys(frontier(rows, metric="accuracy", higher_is_better=["accuracy"])) == ["k0", "k2"]
    both = ["accuracy", "images_per_s"]
    assert keys(frontier(rows, "images_per_s", "accuracy", both)) == ["k2"]


def test_an_empty_table_has_an_empty_frontier() -> None:
    assert frontier([]) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_frontier_is_what_the_definition_says(points: list[tuple[int, int]]) -> None:
    found = frontier(rows_of([(float(cost), float(fid)) for cost, fid in points]))
    pairs = set(points)
    beaten = {
        (cost, fid)
        for cost, fid in pairs
        if any(c <= cost and f <= fid and (c, f) != (cost, fid) for c, f in pairs)
    }
    shown = [(row["gflops_per_image"], row["fid"]) for row in found]
    assert shown == sorted(pairs - beaten)  # each once, cheapest first
