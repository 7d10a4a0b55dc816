"""Files that commit 55e1f42 wrote (tests/data/make_55e1f42.py): keys hold, and commands go on."""

import json
import runpy
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import torch
from safetensors.torch import load_file
from tiny_digits import few_digits, tiny_preset
from var_rows import NAMES

from srdd import SamplerConfig, load_pipeline, presets, sample
from srdd_platform.cli.main import main
from srdd_platform.core.ray_session import Session
from srdd_platform.data.code_places import codes_dir
from srdd_platform.data.codes import load_codes, load_views
from srdd_platform.evaluation.evaluator import EvaluationConfig, row_key, weights_digest
from srdd_platform.evaluation.protocol import FIRST_PROTOCOL, NEW_COLUMNS, begun_under
from srdd_platform.train.job import make_job
from srdd_platform.train.options import Options, TransformerOptions

TESTS = Path(__file__).parents[1]
ARCHIVE = TESTS / "data" / "written_by_55e1f42.tar.xz"
EXPECTED = json.loads(ARCHIVE.with_name("written_by_55e1f42.json").read_text())
SCRIPT = TESTS.parent / "sweeps" / "resample_threshold.py"
MASKS = ("markov", "block_causal")
TIMED = ("latency_ms", "images_per_s", "peak_memory_mb", "order")  # order: of finished trials
WRITTEN_ANEW = ("report", "grids", "stages.json", "stages.md", ".inspected.json", ".lock")

Command = Callable[..., None]


def unpack(root: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root / "runs" / "digits"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory ``runs/digits`` of that commit, for tests that only read it."""
    return unpack(tmp_path_factory.mktemp("written"))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``runs/digits`` below the working directory, for tests that go on in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.PRESETS, "digits", tiny_preset)
    monkeypatch.setattr("sklearn.datasets.load_digits", few_digits)
    unpack(tmp_path)
    return Path("runs/digits")


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


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMED}


def close(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether all values are equal that do not depend on a clock, numbers up to rounding."""
    old, new = untimed(old), untimed(new)
    numbers = {name: value for name, value in old.items() if isinstance(value, float)}
    exact = {name: value for name, value in old.items() if name not in numbers}
    alike = {name: new[name] for name in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-4)
    return list(old) == list(new) and alike and exact.items() <= new.items()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", EXPECTED["settings"])
def test_a_pipeline_draws_the_codes_that_it_drew(written: Path, mask: str, name: str) -> None:
    config = SamplerConfig(**EXPECTED["settings"][name])
    labels = torch.tensor(EXPECTED["labels"])
    found = sample(load_pipeline(written / mask / "model"), labels, config, EXPECTED["seeds"])
    assert found.codes_BL.tolist() == EXPECTED["codes"][f"{mask}, {name}"]


@pytest.mark.parametrize("mask", MASKS)
def test_a_row_has_the_key_that_it_had(written: Path, mask: str) -> None:
    digest = weights_digest(written / mask / "model")
    assert digest == EXPECTED["weights_digests"][mask]
    evaluation = EvaluationConfig(
        data="", extractor="", weights="", num=60, seed=2, protocol=FIRST_PROTOCOL
    )
    for name, values in EXPECTED["settings"].items():
        found = row_key(digest, SamplerConfig(**values), evaluation, "classifier")
        assert found == EXPECTED["row_keys"][f"{mask}, {name}"], name


def config_hash(written: Path, preset: presets.Preset, kind: str, values: dict[str, Any]) -> str:
    data, out = written / "data", written / "out"
    if kind not in MASKS:
        return make_job(kind, preset, data, out, Options(**values)).config_hash
    if "init_from" in values:
        values = {**values, "init_from": written / "markov" / "model"}
    return make_job(
        "transformer", preset, data, out, TransformerOptions(**values),
        tokenizer=written / "tokenizer", mask=kind,
    ).config_hash  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED["options"])
def test_a_training_s_settings_have_the_hash_that_they_had(written: Path, name: str) -> None:
    kind, values = EXPECTED["options"][name]
    found = config_hash(written, tiny_preset(), kind, values)
    assert found == EXPECTED["config_hashes"][name]


@pytest.mark.parametrize("name", EXPECTED["preset_hashes"])
def test_a_preset_s_trainings_have_the_hashes_that_they_had(written: Path, name: str) -> None:
    preset = replace(presets.get_preset(name), tokenizer=tiny_preset().tokenizer)
    for kind, expected in EXPECTED["preset_hashes"][name].items():
        assert config_hash(written, preset, kind, {}) == expected


@pytest.mark.ray
def test_code_shards_are_found_again_and_made_alike(
    runs: Path, srdd: Command, ray_session: Session
) -> None:
    data, tokenizer = runs / "data", runs / "tokenizer"
    one, two = codes_dir(data, tokenizer), codes_dir(data, tokenizer, views=2, flip=True)
    assert {"1 view": one.name, "2 views": two.name} == EXPECTED["codes_keys"]
    assert [len(load_codes(one, split)[0]) for split in ("train", "val")] == [240, 60]
    assert load_views(two, "train")[0].shape == (240, 2, 21)
    before = files(tokenizer / "codes")
    shutil.rmtree(tokenizer / "codes")
    srdd("data", "encode", "--data", data, "--tokenizer", tokenizer)
    srdd("data", "encode", "--data", data, "--tokenizer", tokenizer, "--views", 2, "--flip")
    assert files(tokenizer / "codes") == before


@pytest.mark.ray
@pytest.mark.parametrize("mask", MASKS)
def test_a_training_that_was_killed_goes_on_from_its_checkpoint(
    runs: Path, srdd: Command, ray_session: Session, mask: str
) -> None:
    finished, run = (runs / mask).rename("finished"), runs / mask
    (Path("begun") / mask).rename(run)
    checkpoint = run / "checkpoints" / "step_000080"
    before = files(checkpoint), (checkpoint / "state.pt").stat().st_mtime_ns
    assert read(checkpoint / "manifest.json")["step"] == 80
    assert not (run / "model").exists()
    srdd(
        "train", "transformer", "--data", runs / "data", "--tokenizer", runs / "tokenizer",
        "--mask", mask, "--out", run,
    )  # fmt: skip
    assert before == (files(checkpoint), (checkpoint / "state.pt").stat().st_mtime_ns)
    old, new = (read_lines(directory / "metrics.jsonl") for directory in (finished, run))
    assert [line["step"] for line in new] == [line["step"] for line in old] == [*range(10, 101, 10)]
    assert new[:8] == old[:8]
    assert new == [pytest.approx(line, rel=1e-3) for line in old]
    reached = read(finished / "validation.json")
    assert read(run / "validation.json") == pytest.approx(reached, rel=1e-3)
    assert files(run / "model" / "tokenizer") == files(finished / "model" / "tokenizer")
    paths = [directory / "model/transformer/model.safetensors" for directory in (finished, run)]
    torch.testing.assert_close(*map(load_file, paths), rtol=0, atol=1e-3)


def read_lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("no_ray")
def test_finished_directories_are_left_as_they_are(
    runs: Path, srdd: Command, sweep: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before, table = files(runs), read(runs / "distilled" / "stages.json")
    data = "--data", runs / "data"
    for kind in ("tokenizer", "classifier"):
        srdd("train", kind, *data, "--out", runs / kind)
    for mask in MASKS:
        srdd("train", "transformer", *data, "--tokenizer", runs / "tokenizer", "--mask", mask,
             "--out", runs / mask)  # fmt: skip
    sweep("--trials", 14)
    distill(srdd, runs)
    assert files(runs) == before
    assert read(runs / "distilled" / "stages.json")["rows"] == table["rows"]
    best = load_pipeline(runs / "resample_threshold" / "best").sampler
    assert f"srdd serve {runs}/resample_threshold/best" in capsys.readouterr().out
    row = read(runs / "resample_threshold" / "best" / "selection.json")["row"]
    chosen = rows(runs / "resample_threshold")[row]
    assert (best.cfg, best.refine_steps) == (chosen["cfg"], chosen["refine_steps"])


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
    before = files(out / "rows")
    assert 13 < len(before) < len(rows(finished))
    sweep("--trials", 14)
    after = files(out / "rows")
    assert {name: after[name] for name in before} == before
    old, new = rows(finished), rows(out)
    assert sum(row["kind"] == "trial" for row in new.values()) == 14
    first = [key for key, row in old.items() if row["kind"] == "reference" or row["order"] < 12]
    rerun = [key for key in first if f"{key}.json" not in before and key in new]
    assert len(rerun) >= 4  # of the grid
    assert all(close(old[key], new[key]) for key in rerun)
    assert begun_under(out) == FIRST_PROTOCOL
    table = pd.read_parquet(out / "trials.parquet")
    assert list(table.columns) == [name for name in NAMES if name not in NEW_COLUMNS]
    assert list(table.columns) == list(pd.read_parquet(finished / "trials.parquet").columns)
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
