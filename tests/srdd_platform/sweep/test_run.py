"""Whole sweeps of axes of models, and of settings that no script sweeps."""

import logging
from pathlib import Path

import pytest

from srdd.load import load_pipeline
from srdd_platform.core.files import read_json
from srdd_platform.core.ray_session import Session
from srdd_platform.core.runs import read_metrics
from srdd_platform.report.specs import Frontier, Lines
from srdd_platform.sweep.definition import Float, Sweep, plain, product
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.sweep.run import run_sweep

pytestmark = pytest.mark.ray


def test_an_axis_nobody_swept_and_one_of_models_made_by_pruning(
    tiny_pipeline: Path, digits_shards: Path, classifier_dir: Path, tmp_path: Path,
    ray_session: Session,
) -> None:  # fmt: skip
    sweep = Sweep(
        name="nucleus",
        models={"schedule": ["1,2,3,4", "1,4"]},
        space={"top_p": Float(0.1, 1.0)},
        first=product(top_p=[0.5], schedule=["1,4", "1,2,3,4"]),
        references=plain(cfg=[0]),
        figures=[Frontier(), Lines(x="top_p", series="schedule")],
        objectives=("precision", "nfe"),
    )
    args = SweepArgs(
        model=tiny_pipeline, data=digits_shards, weights=classifier_dir, out=tmp_path / "out",
        trials=3, num=50,
    )  # fmt: skip
    outcome = run_sweep(sweep, args)
    trials = [row for row in outcome.rows if row["kind"] == "trial"]
    assert [(row["schedule"], row["top_p"]) for row in trials[:2]] == [
        ("1,4", 0.5), ("1,2,3,4", 0.5),
    ]  # fmt: skip
    assert len(trials) == 3
    steps = {row["schedule"]: row["nfe"] for row in trials}
    assert steps == {"1,4": 2.0, "1,2,3,4": 4.0}
    rule = "highest precision of all trials; among equals lowest NFE"
    assert read_json(outcome.directory / "best" / "selection.json")["rule"] == rule
    best = max(trials, key=lambda row: (row["precision"], -row["nfe"]))
    assert load_pipeline(outcome.directory / "best").sampler.top_p == best["top_p"]
    sides = tuple(map(int, best["schedule"].split(",")))
    assert load_pipeline(outcome.directory / "best").card.defaults["patch_nums"] == sides
    assert "hypervolume_reference" not in read_json(outcome.directory / "config.json")


def test_schedules_of_a_preset_are_distilled_from_its_model(
    runs: Path, ray_session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sweep = Sweep(
        name="schedules",
        models={"schedule": ["1,2,4", "1,4"]},
        space={"cfg": Float(0, 1)},
        first=product(cfg=[0.5], schedule=["1,2,4", "1,4"]),
    )
    outcome = run_sweep(sweep, SweepArgs(trials=2, num=50))
    trials = [row for row in outcome.rows if row["kind"] == "trial"]
    assert {row["schedule"]: row["nfe"] for row in trials} == {"1,2,4": 5.0, "1,4": 3.0}
    assert outcome.directory == runs / "schedules"
    stage = read_json(runs / "markov-1-4" / "stage_1" / "config.json")
    assert stage["settings"]["optim"]["steps"] == 10  # a tenth of the preset's
    assert read_metrics(runs / "markov-1-4" / "stage_1")[-1]["step"] == 10
    assert not any(text.startswith("Training the") for text in caplog.messages)
    caplog.clear()
    again = run_sweep(sweep, SweepArgs(trials=2, num=50))
    assert again.rows == outcome.rows
    assert not any("Evaluating" in text or "Searching" in text for text in caplog.messages)
