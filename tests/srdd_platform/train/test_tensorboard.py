from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srdd_platform.core.files import write_json
from srdd_platform.core.images import grid_png
from srdd_platform.core.runs import METRICS, THROUGHPUT, append_metrics, cut_metrics
from srdd_platform.train.previews import cut_grids, grid_path
from srdd_platform.train.tail import Follower
from srdd_platform.train.tensorboard import Events, tag


def log(run: Path, step: int, loss: float) -> None:
    append_metrics(run, step, {"time": 1e9 + step, "images_per_s": 7.0}, THROUGHPUT, digits=13)
    append_metrics(run, step, {"loss": loss, "nll_4x4": loss / 2})


def read(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def points(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(e.step, pytest.approx(e.value)) for e in events.Scalars(name)]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("loss", "train/loss"),
        ("nll_4x4", "nll/4x4"),
        ("val_nll_16x16", "val_nll/16x16"),
        ("val_psnr", "val/psnr"),
    ],
)
def test_metrics_that_belong_together_share_a_prefix(name: str, shown: str) -> None:
    assert tag(name) == shown


def test_a_run_that_goes_back_leaves_no_stale_point_and_none_twice(tmp_path: Path) -> None:
    events = Events(tmp_path)
    for step in (10, 20, 30):
        log(tmp_path, step, step / 10)
        events.update()
    cut_metrics(tmp_path, 10)  # a worker was lost after step 30 and begins at step 10
    log(tmp_path, 20, 5.0)
    events.update()
    live = read(tmp_path)
    assert points(live, "train/loss") == [(10, 1.0), (20, 5.0)]
    assert [e.wall_time for e in live.Scalars("train/loss")] == [1e9 + 10, 1e9 + 20]
    events.close(20)

    again = Events(tmp_path)  # the launcher was lost as well; the run is resumed from step 20
    cut_metrics(tmp_path, 20)
    log(tmp_path, 30, 6.0)
    write_json(tmp_path / "validation.json", {"n": 360, "psnr": 21.0, "usage_1x1": 0.5})
    again.close(30)
    found = read(tmp_path)
    assert points(found, "train/loss") == [(10, 1.0), (20, 5.0), (30, 6.0)]
    assert points(found, "nll/4x4") == [(10, 0.5), (20, 2.5), (30, 3.0)]
    assert points(found, "throughput/images_per_s") == [(10, 7.0), (20, 7.0), (30, 7.0)]
    assert points(found, "val/psnr") == [(30, 21.0)]
    assert points(found, "val_usage/1x1") == [(30, 0.5)]
    assert "val/n" not in found.Tags()["scalars"]


def test_grids_are_shown_at_their_steps_once(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16)).byte()
    events = Events(tmp_path)
    for step in (5, 10, 15):
        grid_png(images, grid_path(tmp_path, step))
        events.update()
    (tmp_path / "grids" / ".step_000020.png.0.tmp").touch()  # left by a killed worker
    cut_grids(tmp_path, 10)
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == [
        "step_000005.png", "step_000010.png",
    ]  # fmt: skip
    events.close(15)
    again = Events(tmp_path)
    again.close(15)
    shown = read(tmp_path).Images("grid")
    assert [image.step for image in shown] == [5, 10]
    assert (shown[0].width, shown[0].height) == (114, 114)  # 2 x 2 of 16 px with gutters, 3 times


def test_following_sees_whole_lines_once_and_says_when_the_file_is_another(tmp_path: Path) -> None:
    follower = Follower(tmp_path / METRICS)
    assert follower.read() == (False, [])
    append_metrics(tmp_path, 1, {"loss": 1.0})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 2, "lo')
    assert follower.read() == (False, [{"step": 1, "loss": 1.0}])
    with (tmp_path / METRICS).open("a") as file:
        file.write('ss": 2.0}\n')
    assert follower.read() == (False, [{"step": 2, "loss": 2.0}])
    assert follower.read() == (False, [])
    cut_metrics(tmp_path, 1)
    assert follower.read() == (True, [{"step": 1, "loss": 1.0}])
    cut_metrics(tmp_path, 0)
    assert follower.read() == (True, [])
    follower.close()
