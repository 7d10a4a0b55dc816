"""The recorded event by which a run gets more steps, and what its command then means."""

from pathlib import Path
from typing import Any

import pytest

from srdd.errors import UserError
from srdd.metrics.classifier import ClassifierConfig
from srdd.train.config import OptimConfig
from srdd_platform.core.files import read_json, write_json
from srdd_platform.train.extend import extended, extends, is_finished, mark_finished
from srdd_platform.train.job import Job
from srdd_platform.train.kind import Settings
from srdd_platform.train.kinds import KINDS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 20 steps."""
    write_json(tmp_path / "config.json", {"kind": "train transformer", "settings": {}})
    (tmp_path / "model").mkdir()
    return tmp_path


def _job(run: Path, extend_to: int = 0) -> Job:
    model = ClassifierConfig(num_classes=2, resolution=16)
    settings, kind = Settings(model=model, optim=OptimConfig(steps=20)), KINDS["classifier"]
    return Job(kind=kind, run=str(run), data="", settings=settings, extend_to=extend_to)


def _events(run: Path) -> Any:
    return read_json(run / "config.json").get("extensions")


def test_a_run_that_is_not_extended_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    assert is_finished(run)
    assert extended(_job(run)) == _job(run)
    assert _events(run) is None
    mark_finished(run)
    assert _events(run) is None
    assert not is_finished(tmp_path / "absent")


@pytest.mark.parametrize("steps", [1, 19, 20])
def test_no_fewer_steps(run: Path, steps: int) -> None:
    with pytest.raises(UserError, match="has 20 steps: --extend-to must exceed them"):
        extended(_job(run, steps))
    assert is_finished(run)


def test_an_extension_is_recorded_and_stays_without_the_option(run: Path) -> None:
    asked = _job(run, 30)
    assert extends(asked)
    assert extended(asked).steps == 30
    assert _events(run) == [{"from": 20, "to": 30, "finished": False}]
    assert not is_finished(run)  # model/ is still that of 20 steps
    assert not extends(asked)
    for again in (_job(run), _job(run, 30)):  # interrupted: either command goes on
        assert extended(again).steps == 30
    mark_finished(run)
    assert is_finished(run)
    assert extended(_job(run)).steps == 30
    assert _events(run) == [{"from": 20, "to": 30, "finished": True}]
    assert read_json(run / "config.json")["kind"] == "train transformer"


def test_extensions_follow_each_other(run: Path) -> None:
    extended(_job(run, 30))
    extended(_job(run, 35))  # before the first is done: the same event, further
    assert _events(run) == [{"from": 20, "to": 35, "finished": False}]
    mark_finished(run)
    extended(_job(run, 50))
    assert [(event["from"], event["to"]) for event in _events(run)] == [(20, 35), (35, 50)]
    with pytest.raises(UserError, match="has 50 steps"):
        extended(_job(run, 35))


def test_more_steps_are_no_other_configuration(run: Path) -> None:
    assert _job(run, 30).config_hash == _job(run).config_hash
