"""What only watches a training fails in every way that it can, and the training goes on."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from srdd.metrics.classifier import ClassifierConfig
from srdd.train.classifier import ClassifierTask
from srdd.train.config import OptimConfig
from srdd.train.task import Task
from srdd.train.workers import ALONE
from srdd_platform.cli.log_output import log_to
from srdd_platform.cli.progress import bars
from srdd_platform.cli.terminal import Terminal
from srdd_platform.core.images import grid_png
from srdd_platform.core.runs import METRICS, THROUGHPUT, append_metrics, read_metrics
from srdd_platform.core.watching import WARNINGS, Watcher, tell_launcher
from srdd_platform.train import monitor as meter
from srdd_platform.train.data import open_data
from srdd_platform.train.job import Job
from srdd_platform.train.kind import Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.monitor import Watch, ascii_tag
from srdd_platform.train.previews import grid_path
from srdd_platform.train.progress import follow as follow_runs


def job(run: Path) -> Job:
    settings = Settings(
        model=ClassifierConfig(num_classes=10, resolution=16, ch=8, features=32),
        optim=OptimConfig(steps=40, batch_size=8),
    )
    return Job(kind=KINDS["classifier"], run=str(run), data="", settings=settings)


def watch(run: Path) -> tuple[Task, Watch]:
    own = job(run)
    task, data = own.build_task(), open_data(own)
    return task, Watch(run, "classifier", task, data, own.optim, ALONE, torch.device("cpu"))


def fail(*arguments: object, **options: object) -> None:
    raise UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range\n(128)")


def test_the_first_error_is_told_in_one_line_and_later_actions_still_run() -> None:
    told: list[str] = []
    watcher = Watcher("Ray's metrics", told.append)
    done = [watcher(fail), watcher(lambda: 3), watcher(fail), watcher(max, 2, 5)]
    assert done == [None, 3, None, 5]
    assert watcher.failed
    assert len(told) == 1
    assert told[0].startswith("Ray's metrics cannot be kept up: UnicodeEncodeError")
    assert "\n" not in told[0]

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watcher(interrupted)


def test_who_is_told_may_be_what_is_broken() -> None:
    assert Watcher("the progress display", fail)(fail) is None


@given(st.text(min_size=1))
def test_a_tag_of_ray_s_metrics_is_ascii_and_names_one_run(name: str) -> None:
    """ray#18517 and kohya_ss#1983: letters that are not ASCII end a training."""
    name = name.encode(errors="replace").decode()
    tag = ascii_tag(f"/runs/{name}")
    assert tag.isascii()
    assert tag.isprintable()
    if name.isascii() and name.isprintable() and "%" not in name:
        assert tag == f"/runs/{name}"
    assert (tag == ascii_tag(f"/runs/{name}é")) is False


BREAKS = {
    "Ray's metrics": lambda run, patch: patch.setattr("ray.util.metrics.Gauge.set", fail),
    "Ray's metrics cannot": lambda run, patch: patch.setattr(meter, "Gauge", fail),
    "previews": lambda run, patch: (run / "grids").write_text("in the way"),
    "previews cannot": lambda run, patch: patch.setattr(ClassifierTask, "preview", fail),
    "throughput.jsonl": lambda run, patch: (run / THROUGHPUT).mkdir(),
    "throughput.jsonl cannot": lambda run, patch: patch.setattr(meter, "device_peak", fail),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_worker_goes_on_without_what_only_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    black = torch.zeros(20, 3, 16, 16).byte()
    monkeypatch.setattr(ClassifierTask, "preview", lambda *_: black)
    BREAKS[broken](tmp_path, monkeypatch)
    task, own = watch(tmp_path)
    own.begin(0)
    for step in (10, 20, 30):
        own.log(step, {"loss": 1 / step})
        own.grid(step, task)
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 30]
    warnings = [json.loads(line) for line in (tmp_path / WARNINGS).read_text().splitlines()]
    assert len(warnings) == 1
    assert warnings[0]["warning"].startswith(broken)


def test_the_record_of_a_run_fails_loudly(tmp_path: Path) -> None:
    _, own = watch(tmp_path)
    (tmp_path / METRICS).mkdir()
    with pytest.raises(IsADirectoryError):
        own.log(10, {"loss": 1.0})


def log(run: Path, step: int) -> None:
    append_metrics(run, step, {"time": 1e9, "images_per_s": 4.0}, THROUGHPUT)
    append_metrics(run, step, {"loss": 1 / step})


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 8 kB: a full disk, as a process sees it."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


def follow(run: Path) -> list[str]:
    """The lines of a training of 40 steps, whose worker writes as it always does."""
    out = io.StringIO()
    console = Console(file=out, width=200)
    with log_to(console), follow_runs([job(run)], bars(console)) as update:
        for step in range(4, 41, 4):
            log(run, step)
            update()
    return out.getvalue().splitlines()


def test_a_file_in_the_place_of_tensorboard_s_folder(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    first, *lines = follow(tmp_path)
    assert "TensorBoard's files cannot be kept up: " in first
    assert [line.split(",")[0].split()[-1] for line in lines] == [
        f"{step}/40" for step in range(4, 41, 4)
    ]


def test_a_disk_that_fills_up_under_tensorboard(
    tmp_path: Path, small_files: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """tensorboard#6171: its writer's own thread failed, and the training hung or ended."""
    noise = torch.randint(0, 256, (1, 3, 32, 32)).byte()
    for step in (4, 8, 12):
        grid_png(noise, grid_path(tmp_path, step))
    assert grid_path(tmp_path, 4).stat().st_size < 8192 < 3 * grid_path(tmp_path, 4).stat().st_size
    lines = follow(tmp_path)
    told = [line for line in lines if "cannot be kept up" in line]
    assert len(told) == 1
    assert "TensorBoard's files cannot be kept up: no space left" in told[0]
    assert len(lines) == 11
    assert capfd.readouterr().err == ""


def test_lines_of_metrics_that_are_none_are_left_out(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(b'\xff\xfe\n7\n"text"\n{"step": 2, "lo\n')
    assert len(follow(tmp_path)) == 10


def test_metrics_that_cannot_be_read_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srdd_platform.train.tail.Follower._replaced", fail)
    told = [line for line in follow(tmp_path) if line.startswith("the progress display cannot")]
    assert len(told) == 1


def test_what_a_worker_tells_is_said_once_and_not_again_after_a_restart(tmp_path: Path) -> None:
    tell = tell_launcher(tmp_path)
    tell("from an earlier start")
    out = io.StringIO()
    console = Console(file=out, width=200)
    with log_to(console), follow_runs([job(tmp_path)], bars(console)) as update:
        for text in ("previews are lost", "previews are lost", "metrics are lost"):
            tell(text)
            update()
    name = f"classifier {tmp_path.name}"
    told = [line for line in out.getvalue().splitlines() if line.startswith(name)]
    assert told == [  # not what this process logs as the worker
        f"{name}: previews are lost", f"{name}: metrics are lost",
    ]  # fmt: skip


def test_a_console_without_a_reader_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        console = Terminal()
        for _ in range(3):
            console.print("step 10/40", "x" * 100_000)
        assert console.quiet


def test_a_console_on_a_full_disk_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        console = Terminal()
        console.print("step 10/40")
        assert console.quiet
        console.print("step 20/40")


SCRIPT = """
import os
from srdd_platform.cli.streams import prepare_streams
from srdd_platform.cli.terminal import Terminal
prepare_streams()
file = open(os.devnull)
Terminal().print("läufe/größe/研究")
print("läufe", file=__import__("sys").stderr, flush=True)
Terminal().print(f"descriptor above the standard ones: {file.fileno() > 2}")
"""


@pytest.mark.parametrize("streams", ["", "2>&-", "2>&- <&-", ">&- 2>/dev/null"])
@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_streams_that_are_closed_or_cannot_encode(variables: dict[str, str], streams: str) -> None:
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, **variables, "PYTHONPATH": f"{root}:{root}/platform"}
    found = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {streams}', sys.executable, SCRIPT],
        env=environment, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    assert (found.returncode, "Traceback" in found.stderr) == (0, False), found.stderr
    if not streams.startswith(">&-"):
        assert found.stdout.endswith("descriptor above the standard ones: True\n")
