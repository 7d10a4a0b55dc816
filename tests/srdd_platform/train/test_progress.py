import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from srdd.train.config import OptimConfig
from srdd_platform.cli.progress import bars
from srdd_platform.core.runs import THROUGHPUT, append_metrics, cut_metrics
from srdd_platform.train.job import Job
from srdd_platform.train.kind import Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.progress import Pace, View, follow


def job(run: Path, steps: int = 100) -> Job:
    settings = Settings(model=None, optim=OptimConfig(steps=steps, batch_size=8))
    return Job(kind=KINDS["tokenizer"], run=str(run), data="", settings=settings)


def log(run: Path, step: int, images_per_s: float = 4.0) -> None:
    append_metrics(run, step, {"time": 1e9, "images_per_s": images_per_s}, THROUGHPUT)
    append_metrics(run, step, {"loss": 1 / step})


def test_time_left_is_the_pace_of_the_steps_seen() -> None:
    pace = Pace()
    assert pace.left_s(90) is None
    assert pace.left_s(90, step_s=2.0) == 180
    pace.see(10, 50.0)
    assert pace.left_s(90, step_s=2.0) == 180  # one moment makes no pace
    pace.see(20, 80.0)
    assert pace.left_s(80, step_s=2.0) == 240
    for i in range(1000):  # it grew faster: the old pace is forgotten
        pace.see(30 + 10 * i, 90.0 + i)
    assert pace.left_s(80) == pytest.approx(8)


def test_a_resumed_run_is_not_taken_for_a_fast_one(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        log(tmp_path, step)
    told: list[str] = []
    view = View(job(tmp_path), told.append)
    view.update(now=0.0)
    assert view.step == 50
    assert view.note() == "loss 0.020, 4 images/s, 0:01:40 left"  # by what was measured then
    cut_metrics(tmp_path, 30)  # the worker begins at its checkpoint
    view.update(now=60.0)
    assert view.step == 30
    log(tmp_path, 40, images_per_s=8.0)
    view.update(now=61.0)
    assert "8 images/s, 0:01:00 left" in view.note()
    log(tmp_path, 50, images_per_s=8.0)
    view.update(now=81.0)  # 10 steps in 20 s, checkpoints and all
    assert view.note().endswith("0:01:40 left")
    view.close()
    assert told == []


def test_lines_stand_in_for_the_bar_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    now = iter(range(0, 10_000, 100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    with follow([job(tmp_path)], bars(Console(file=out, width=200))) as update:
        update()
        for step in range(1, 13):
            log(tmp_path, step)
            update()
            update()  # nothing new: nothing said
    lines = out.getvalue().splitlines()
    # A line each tenth of the steps, and after ten minutes of silence.
    assert [line.split(",")[0].strip() for line in lines] == [
        "tokenizer " + tmp_path.name + f": step {step}/100" for step in (4, 8, 10)
    ]
    assert "loss 0.250, 4 images/s" in lines[0]


def test_a_terminal_shows_a_bar_with_loss_speed_and_time_left(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    with follow([job(tmp_path)], bars(console)) as update:
        update()
        log(tmp_path, 25)
        update()
    shown = out.getvalue()
    assert "25/100" in shown
    assert "loss 0.040, 4 images/s, 0:02:30 left" in shown
