"""Directories begun under ``fid@1`` (tests/data/make_fid1.py): reported, served, gone on with."""

import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from var_rows import NAMES, var_row

from srdd import SamplerConfig, load_pipeline
from srdd.errors import UserError
from srdd.presets import digits
from srdd_platform.core.files import read_json, write_json
from srdd_platform.core.ray_session import Session
from srdd_platform.distill.run import Distillation, distill
from srdd_platform.evaluation.protocol import (
    FIRST_PROTOCOL,
    NEW_COLUMNS,
    PROTOCOL,
    EvaluationConfig,
    begun_under,
    under,
)
from srdd_platform.evaluation.rows import read_rows, write_row
from srdd_platform.evaluation.table import compile_table
from srdd_platform.report.page import build_report
from srdd_platform.sweep.best import best_row
from srdd_platform.sweep.definition import (
    Categorical,
    Float,
    Int,
    Sweep,
    epsilon,
    plain,
    product,
)
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.sweep.run import run_sweep
from srdd_platform.train.options import TransformerOptions

ARCHIVE = Path(__file__).resolve().parents[2] / "data" / "fid1.tar.xz"
FIRST_NAMES = [name for name in NAMES if name not in NEW_COLUMNS]
SWEEP = Sweep(
    name="small",
    space={
        "cfg": Float(0.0, 3.0, step=0.25),
        "feedback": Categorical(("updated", "kept")),
        "refine_steps": Int(0, 2),
        "resample_threshold": Float(1e-3, 0.3, log=True),
    },
    first=product(cfg=[0.5], feedback=["updated"], refine_steps=[1], resample_threshold=[0.01]),
    references=[*plain(cfg=[0, 0.5, 1, 2]), *epsilon(1e-3, 1e-2, cfg=0.5)],
)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """What the archive holds: data, model, classifier, sweep, distillation."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "rows").iterdir()}


def search(root: Path, out: Path, trials: int) -> None:
    args = SweepArgs(
        out=out, model=root / "model", data=root / "data", weights=root / "classifier",
        trials=trials, num=60,
    )  # fmt: skip
    run_sweep(SWEEP, args)


def distillation(root: Path) -> Distillation:
    evaluation = EvaluationConfig(
        data=str(root / "data"), extractor="classifier", weights=str(root / "classifier"), num=60
    )
    return Distillation(
        model=root / "model", data=evaluation.data, out=root / "distillation", stages=((1, 4),),
        steps=1, options=TransformerOptions(batch_size=30), evaluation=evaluation,
    )  # fmt: skip


def same(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether the columns are equal, and all values that do not depend on a clock."""
    timed = ("latency_ms", "images_per_s", "peak_memory_mb", "order")
    numbers = {k: v for k, v in old.items() if isinstance(v, float) and k not in timed}
    texts = {k: v for k, v in old.items() if k not in numbers and k not in timed}
    close = {k: new[k] for k in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-4)
    return list(old) == list(new) and close and texts.items() <= new.items()


@pytest.mark.ray
def test_a_sweep_goes_on_under_the_protocol_it_was_begun_under(
    first: Path, ray_session: Session
) -> None:
    out = first / "sweep"
    columns = pq.read_schema(out / "trials.parquet").names
    before = files(out)
    lost = next(row for row in read_rows(out) if row["kind"] == "trial" and row["refine_steps"])
    (out / "rows" / f"{lost['key']}.json").unlink()
    search(first, out, trials=4)
    after = files(out)
    assert before.keys() < after.keys()
    assert {name: after[name] for name in before if lost["key"] not in name} == {
        name: text for name, text in before.items() if lost["key"] not in name
    }
    rows = read_rows(out)
    assert sum(row["kind"] == "trial" for row in rows) == 4
    again = next(row for row in rows if row["key"] == lost["key"])
    assert same(lost, again)
    assert all(row.keys() == lost.keys() for row in rows)
    assert pq.read_schema(out / "trials.parquet").names == columns == FIRST_NAMES
    assert read_json(out / "config.json")["settings"]["protocol"] == FIRST_PROTOCOL
    best = best_row(out, SWEEP.objectives)
    assert best is not None
    assert read_json(out / "best" / "selection.json")["row"] == best["key"]
    assert load_pipeline(out / "best").sampler.cfg == best["cfg"]
    assert "begun under fid@1, whose KID is biased" in (out / "report" / "index.html").read_text()


@pytest.mark.ray
def test_a_distillation_s_table_goes_on_under_the_protocol_it_was_begun_under(
    first: Path, ray_session: Session
) -> None:
    out = first / "distillation"
    before = files(out)
    lost = read_json(out / "stages.json")["rows"][2]
    (out / "rows" / f"{lost['key']}.json").unlink()
    job = distillation(first)
    distill(job, digits(), None)
    after = files(out)
    assert after.keys() == before.keys()
    assert same(lost, read_json(out / "rows" / f"{lost['key']}.json"))
    assert {name for name in before if before[name] != after[name]} == {f"{lost['key']}.json"}
    assert read_json(out / "config.json")["runtime"]["protocol"] == FIRST_PROTOCOL
    assert "begun under fid@1, whose KID is biased" in (out / "stages.md").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    distill(job, digits(), None)
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == stamps


def test_a_finished_sweep_of_fid_1_is_reported_as_it_is(first: Path) -> None:
    before = files(first / "sweep"), (first / "sweep" / "trials.parquet").read_bytes()
    text = build_report(first / "sweep").read_text()
    assert "begun under fid@1, whose KID is biased" in text
    assert "KID <small>" in text
    assert "KID raw <small>" not in text
    assert before == (files(first / "sweep"), (first / "sweep" / "trials.parquet").read_bytes())
    assert load_pipeline(first / "sweep" / "best").class_names == ("0", "1", "2")


def test_what_is_new_has_the_new_protocol(tmp_path: Path) -> None:
    assert begun_under(tmp_path / "new") == PROTOCOL
    assert PROTOCOL.startswith("fid@2 ")
    assert EvaluationConfig(data="", extractor="", weights="").protocol == PROTOCOL
    write_row(tmp_path, var_row("a", kid=0.1, kid_raw=0.05))
    row = read_json(tmp_path / "rows" / "a.json")
    assert (row["protocol"], row["kid"], row["kid_raw"]) == (PROTOCOL, 0.1, 0.05)
    assert list(compile_table(tmp_path, SamplerConfig).columns) == NAMES
    text = build_with_config(tmp_path)
    assert "the column KID has that bias subtracted" in text
    assert "fid@1" not in text


def build_with_config(directory: Path) -> str:
    write_json(directory / "config.json", {"settings": {"protocol": PROTOCOL}})
    return build_report(directory).read_text()


def test_a_table_without_classes_has_kid_raw_alone(tmp_path: Path) -> None:
    write_row(tmp_path, var_row("a", fid=1.0, kid_raw=0.05))
    compile_table(tmp_path)
    text = build_with_config(tmp_path)
    assert "KID raw <small>" in text
    assert "KID <small>" not in text
    assert "KID is empty where" in text


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"settings": {"protocol": FIRST_PROTOCOL}, "runtime": {}}, FIRST_PROTOCOL),
        ({"settings": {}, "runtime": {"protocol": FIRST_PROTOCOL}}, FIRST_PROTOCOL),
        ({"settings": {"optim": {}}, "runtime": {"num": 60}}, FIRST_PROTOCOL),  # a distillation
        ({"settings": {"protocol": PROTOCOL}, "runtime": {}}, PROTOCOL),
        ({"settings": {}, "runtime": {"protocol": PROTOCOL}}, PROTOCOL),
        ([], PROTOCOL),  # refused when it is opened
    ],
)
def test_a_directory_says_its_protocol(tmp_path: Path, config: Any, expected: str) -> None:
    write_json(tmp_path / "config.json", config)
    assert begun_under(tmp_path) == expected


def test_a_protocol_of_a_later_version_is_refused(first: Path) -> None:
    for name, part in (("sweep", "settings"), ("distillation", "runtime")):
        path = first / name / "config.json"
        config = read_json(path)
        write_json(path, {**config, part: {**config[part], "protocol": "fid@9 x"}})
    text = "was begun under the evaluation protocol 'fid@9 x', which this version does not know"
    with pytest.raises(UserError, match=text):
        search(first, first / "sweep", trials=3)
    job = distillation(first)
    with pytest.raises(UserError, match=text):
        distill(job, digits(), None)


def test_values_in_the_columns_of_a_protocol() -> None:
    measured = {"fid": 1.0, "kid_raw": -0.01, "kid": 0.002}
    assert under(PROTOCOL, measured) == {**measured, "protocol": PROTOCOL}
    assert under(FIRST_PROTOCOL, measured) == {"fid": 1.0, "kid": -0.01}
    assert under(FIRST_PROTOCOL, {"kid_raw": 0.5}) == {"kid": 0.5}
