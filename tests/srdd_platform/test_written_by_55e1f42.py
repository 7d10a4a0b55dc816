"""The commands go on with the files that commit 55e1f42 wrote (tests/data/make_55e1f42.py)."""

import json
import runpy
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import torch
from safetensors.torch import load_file
from written_by_55e1f42 import MASKS

from srdd import load_pipeline
from srdd_platform.cli.main import main
from srdd_platform.core.ray_session import Session
from srdd_platform.evaluation.protocol import FIRST_PROTOCOL, begun_under

SCRIPT = Path(__file__).parents[2] / "sweeps" / "resample_threshold.py"
TIMED = ("latency_ms", "images_per_s", "peak_memory_mb")
CACHES = (".inspected.json", ".finished.json", ".lock")
WRITTEN_ANEW = ("report", "grids", "stages.json", "stages.md", *CACHES)

Command = Callable[..., None]


@pytest.fixture
def srdd(monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["srdd", *map(str, arguments)])
        main()

    return run


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Command:
    """What ``make sweep`` runs, with that commit's number of images."""

    def run(*arguments: object) -> None:
        given = [str(SCRIPT), "--num", "50", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", given)
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("a finished directory needs no Ray")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def files(directory: Path) -> dict[str, bytes]:
    """Contents by name, without paths of the machine and what every command writes anew."""
    found = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not set(WRITTEN_ANEW) & set(path.parts)
    }
    for name in [name for name in found if Path(name).name == "config.json"]:
        config = json.loads(found[name])
        config.pop("runtime", None)
        found[name] = json.dumps(config).encode()
    return found


def rows(directory: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: read(path) for path in (directory / "rows").iterdir()}


def close(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether all values are equal that do not depend on a clock, numbers up to rounding."""
    timed = (*TIMED, *(["order"] if old.get("kind") == "trial" else []))  # as trials end
    old, new = ({k: v for k, v in row.items() if k not in timed} for row in (old, new))
    numbers = {name: value for name, value in old.items() if isinstance(value, float)}
    exact = {name: value for name, value in old.items() if name not in numbers}
    alike = {name: new[name] for name in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-4)
    return list(old) == list(new) and alike and exact.items() <= new.items()


@pytest.mark.ray
def test_code_shards_are_made_alike(runs: Path, srdd: Command, ray_session: Session) -> None:
    data, tokenizer = runs / "data", runs / "tokenizer"
    before = files(tokenizer / "codes")
    shutil.rmtree(tokenizer / "codes")
    srdd("data", "encode", "--data", data, "--tokenizer", tokenizer)
    srdd("data", "encode", "--data", data, "--tokenizer", tokenizer, "--views", 2, "--flip")
    assert files(tokenizer / "codes") == before


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "step"), [("tokenizer", 240), ("markov", 80), ("block_causal", 80)]
)
def test_a_training_that_was_killed_goes_on_from_its_checkpoint(
    runs: Path, srdd: Command, ray_session: Session, name: str, step: int
) -> None:
    finished, run = (runs / name).rename("finished"), runs / name
    (Path("begun") / name).rename(run)
    checkpoint = run / "checkpoints" / f"step_{step:06d}"
    before = files(checkpoint), (checkpoint / "state.pt").stat().st_mtime_ns
    assert read(checkpoint / "manifest.json")["step"] == step
    assert not (run / "model").exists()
    train(srdd, runs, name)
    assert before == (files(checkpoint), (checkpoint / "state.pt").stat().st_mtime_ns)
    old, new = (read_lines(directory / "metrics.jsonl") for directory in (finished, run))
    assert new[: step // 10] == old[: step // 10]
    assert len(new) > step // 10
    assert new == [pytest.approx(line, rel=1e-3, abs=1e-6) for line in old]
    reached = read(finished / "validation.json")
    assert read(run / "validation.json") == pytest.approx(reached, rel=1e-3)
    assert files(run / "model").keys() == files(finished / "model").keys()
    for path in (finished / "model").rglob("*.safetensors"):
        found = load_file(run / "model" / path.relative_to(finished / "model"))
        torch.testing.assert_close(found, load_file(path), rtol=2**-8, atol=1e-3)  # bfloat16's


def train(srdd: Command, runs: Path, name: str, *more: object) -> None:
    kind = ["transformer", "--tokenizer", runs / "tokenizer", "--mask", name]
    kind = kind if name in MASKS else [name]
    srdd("train", *kind, "--data", runs / "data", "--out", runs / name, *more)


def read_lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("no_ray")
def test_finished_directories_are_left_as_they_are(
    runs: Path, srdd: Command, sweep: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before, table = files(runs), read(runs / "distilled" / "stages.json")
    for name in ("tokenizer", "classifier", *MASKS):
        train(srdd, runs, name)
    sweep("--trials", 14)
    distill(srdd, runs)
    assert files(runs) == before
    assert read(runs / "distilled" / "stages.json")["rows"] == table["rows"]
    best = load_pipeline(runs / "resample_threshold" / "best").sampler
    assert f"srdd serve {runs}/resample_threshold/best" in capsys.readouterr().out
    row = read(runs / "resample_threshold" / "best" / "selection.json")["row"]
    chosen = rows(runs / "resample_threshold")[row]
    assert (best.cfg, best.refine_steps) == (chosen["cfg"], chosen["refine_steps"])


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("name", ["resample_threshold", "tokenizer", "markov"])
def test_other_settings_are_refused_with_the_difference(
    runs: Path, srdd: Command, sweep: Command, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(runs)
    with pytest.raises(SystemExit):
        sweep("--seed", 1) if name == "resample_threshold" else train(srdd, runs, name, "--seed", 1)
    said = capsys.readouterr().err
    assert f"runs/digits/{name} holds a run with other settings (" in said
    assert "seed: 0 -> 1" in said
    assert files(runs) == before


def distill(srdd: Command, runs: Path) -> None:
    srdd(
        "train", "distill", "--data", runs / "data", "--model", runs / "markov", "--stages", "1,4",
        "--stage-steps", 2, "--weights", runs / "classifier", "--num", 50,
        "--out", runs / "distilled",
    )  # fmt: skip


@pytest.mark.ray
def test_a_sweep_that_was_killed_goes_on(
    runs: Path, srdd: Command, sweep: Command, ray_session: Session
) -> None:
    finished, out = (runs / "resample_threshold").rename("finished"), runs / "resample_threshold"
    (Path("begun") / "resample_threshold").rename(out)
    assert not (out / "best").exists()
    (out / ".tune" / "search").mkdir(parents=True)  # as Tune leaves it
    (out / ".tune" / "search" / "tuner.pkl").write_bytes(b"of classes that have moved")
    before = files(out / "rows")
    assert 13 < len(before) < len(rows(finished))
    sweep("--trials", 14)
    after = files(out / "rows")
    assert {name: after[name] for name in before} == before
    old, new = rows(finished), rows(out)
    assert Counter(row["kind"] for row in new.values()) == {"reference": 17, "trial": 14}
    first = [key for key, row in old.items() if row["kind"] == "reference" or row["order"] < 12]
    rerun = [key for key in first if f"{key}.json" not in before and key in new]
    assert len(rerun) >= 4  # of the grid
    assert all(close(old[key], new[key]) for key in rerun)
    assert begun_under(out) == FIRST_PROTOCOL
    tables = [pd.read_parquet(directory / "trials.parquet") for directory in (out, finished)]
    assert list(tables[0].columns) == list(tables[1].columns)
    assert len(tables[0]) == 31
    assert load_pipeline(out / "best").class_names == tuple("0123456789")
    assert "begun under fid@1" in (out / "report" / "index.html").read_text()


@pytest.mark.ray
def test_rows_that_were_lost_are_made_again_alike(
    runs: Path, srdd: Command, sweep: Command, ray_session: Session
) -> None:
    lost: dict[Path, dict[str, Any]] = {}
    before = {}
    for out in (runs / "resample_threshold", runs / "distilled"):
        before[out] = files(out / "rows")
        found = sorted(rows(out).values(), key=lambda row: row["order"])
        wanted = [row for row in found if row.get("kind") != "trial"]  # a model's own latency
        lost[out] = wanted[1]
        (out / "rows" / f"{lost[out]['key']}.json").unlink()
    sweep("--trials", 14)
    distill(srdd, runs)
    for out, row in lost.items():
        name = f"{row['key']}.json"
        after = files(out / "rows")
        assert close(row, json.loads(after[name]))
        assert {**after, name: b""} == {**before[out], name: b""}
        assert begun_under(out) == FIRST_PROTOCOL
