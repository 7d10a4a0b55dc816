"""The check of a GPU machine, on a CPU: parts that end in every way, files at every moment."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_check, gpu_job, gpu_parts, gpu_timing, gpu_training
from benchmarks.arms import ArmFailedError, SkipArmError
from benchmarks.gpu_check import Plan
from benchmarks.gpu_job import Job
from benchmarks.gpu_results import Machine, Part, Results, Row
from benchmarks.sizes import SIZES

ROOT = Path(__file__).resolve().parents[2]
DRY = ["--device", "cpu", "--size", "tiny", "--batch", "2"]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Functions that a process can import by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("ends")


def _job(batches: tuple[int, ...] = (2,), **settings: Any) -> Job:
    given = {"size_name": "tiny", "device_name": "cpu", "limit_s": 1e6, "began": 0.0}
    return Job(**{**given, "batches": batches, **settings})


def _rows(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["part"], row["what"]): row for part in report["parts"] for row in part["rows"]}


def test_parts_that_fail_hang_or_crash_take_nothing_along(ends: Any, tmp_path: Path) -> None:
    todo = [
        Plan("machine", ends.reads_the_machine, 100),
        Plan("fails", ends.reads_and_fails, 100),
        Plan("crashes", ends.reads_and_crashes, 100),
        Plan("hangs", ends.reads_and_hangs, 1),  # about 2 s
        Plan("wrong", ends.reads_too_much, 100),
        Plan("well", ends.reads, 100),
    ]
    args = gpu_check.parse(["--out", str(tmp_path / "out"), *DRY, "--minutes", "7"])
    results = gpu_check.run(args, todo)
    assert not results.ok
    report = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert (report["complete"], report["ok"]) == (True, False)
    ended = {part["name"]: (part["ok"], part["status"]) for part in report["parts"]}
    assert ended == {
        "machine": (True, "ok"),
        "fails": (False, "failed"),
        "crashes": (False, "failed"),
        "hangs": (False, "timed out"),
        "wrong": (False, "ok"),
        "well": (True, "ok"),
    }
    rows = _rows(report)
    assert all(rows[part, "before"]["value"] == 1 for part in ("fails", "crashes"))
    status = Path(f"/proc/{rows['hangs', 'before']['value']}/stat")  # of what the part started
    assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"
    assert rows["wrong", "check"]["status"] == "failed"
    arm = rows["well", "arm"]
    assert (arm["card"], arm["torch"], arm["commit"]) == ("a card", "2.11.0", "abc1234")
    assert (arm["dtype"], arm["batch"], arm["ms"], arm["rounds"]) == ("bf16", 8, [5, 4, 6], 2)
    assert (arm["images_per_s"], arm["peak_mb"], arm["against_plain"][0]) == (1600, 812, 2.5)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["gpu_check.json", "gpu_check.log", "gpu_check.md"]
    log = (tmp_path / "out" / "gpu_check.log").read_text()
    assert "illegal memory access" in log
    assert "in reads_and_hangs" in log
    lines = (tmp_path / "out" / "gpu_check.md").read_text().splitlines()
    assert lines[0] == "gpu_check, card a card, torch 2.11.0, commit abc1234, complete"
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + len(todo) + len(rows)


def test_time_that_a_part_leaves_goes_to_those_after_it(
    ends: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 30.0, 30.0, 40.0])
    seen: list[float] = []

    def run(_function: Any, arguments: Any, **how: Any) -> Any:
        seen.append(how["limit_s"])
        assert arguments[0].limit_s == how["limit_s"]
        return gpu_check.isolated.Outcome("ok", "", 1.0)

    monkeypatch.setattr(gpu_check.isolated, "run", run)
    monkeypatch.setattr(gpu_check.isolated, "warm_up", lambda _modules: None)
    monkeypatch.setattr(gpu_check.gpu_parts, "commit", lambda: None)
    monkeypatch.setattr(gpu_check.time, "monotonic", lambda: next(clock))
    todo = [Plan("a", ends.reads, 1), Plan("b", ends.reads, 3)]
    results = Results(tmp_path, {}, [Part("a"), Part("b")])
    gpu_check.check(todo, lambda **given: _job(**given), results, minutes=2)
    assert seen == [30.0, 90.0]  # a quarter of 120 s, then all that is left


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_keeps_what_it_had(
    ends: Any, tmp_path: Path, number: signal.Signals
) -> None:
    todo = [
        Plan("machine", ends.reads_the_machine, 1),
        Plan("stops", partial(ends.stops_the_run, number), 1),
        Plan("after", ends.reads, 1),
    ]
    before = signal.getsignal(number)
    results = gpu_check.run(gpu_check.parse(["--out", str(tmp_path / "out"), *DRY]), todo)
    assert signal.getsignal(number) == before
    assert not results.ok
    report = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert (report["complete"], report["ok"]) == (False, False)
    assert [part["status"] for part in report["parts"]] == ["ok", "cut", "not run"]
    assert _rows(report)["stops", "before"]["card"] == "a card"
    assert f"stopped by {number.name}" in (tmp_path / "out" / "gpu_check.md").read_text()


def test_the_command_reads_checks_and_ends_with_1_when_it_is_told_to(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(tmp_path / "out"), *DRY]
    command += ["--parts", "parity", "agreement"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    printed = []
    for line in process.stderr:
        printed.append(line)
        if line.startswith("agreement: "):
            process.terminate()
    assert process.wait() == 1
    assert printed[-1] == f"stopped by SIGTERM: {tmp_path / 'out'} keeps what was read\n"
    report = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert [part["status"] for part in report["parts"]] == ["ok", "ok", "cut"]
    rows = _rows(report)
    checks = [row for (part, _), row in rows.items() if part == "parity"]
    assert len(checks) == 4 + 2 + 2 * 3 * 2
    assert all(row["value"] <= row["bound"] for row in checks)
    assert rows["parity", "greedy codes, cfg 4 markov"]["value"] == 0
    assert rows["parity", "latents"]["torch"] == torch.__version__


def test_rows_have_torch_and_commit_where_the_machine_was_not_read(
    ends: Any, tmp_path: Path
) -> None:
    args = gpu_check.parse(["--out", str(tmp_path / "out"), *DRY])
    todo = [Plan("fails", ends.reads_and_fails, 1)]
    gpu_check.run(args, todo)
    row = _rows(json.loads((tmp_path / "out" / "gpu_check.json").read_text()))["fails", "before"]
    assert (row["card"], row["torch"]) == (None, torch.__version__)
    assert row["commit"] == gpu_parts.commit()


def test_the_rates_of_a_gpu_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"copy_bytes": 4e12, "matmul_flops": 8e14, "conv_flops": 6e14}
    for name, rate in rates.items():
        monkeypatch.setattr(f"benchmarks.ceilings.{name}", lambda *_, rate=rate: rate)
    monkeypatch.setattr(Job, "gpu", True)
    sent: list[Any] = []
    gpu_parts.environment(_job(), sent.append)
    assert isinstance(sent[0], Machine)
    assert sent[0].facts["torch"] == torch.__version__
    assert sent[0].facts["commit"] in (None, gpu_parts.commit())
    found = {(row.what, row.dtype): row.value for row in sent[1:]}
    assert found["copies, GB/s", ""] == 4000
    assert found["products, TFLOP/s", "bf16"] == 800
    assert found["convolutions, TFLOP/s", "fp32"] == 600
    assert len(found) == 7


def test_every_number_of_the_tiny_model_is_read() -> None:
    """The parts' own work, in this process."""
    sent: list[Row] = []
    gpu_parts.parity_with_plain(_job(), sent.append)
    assert len(sent) == 4 + 2 + 2 * 3 * 2
    sent.clear()
    gpu_timing.sampling_arms(
        ["plain", "markov", "markov+graph", "markov:fp16"], _job(), sent.append
    )
    rows = {(row.what, row.dtype): row for row in sent}
    plain, markov = rows["plain", "fp32"], rows["markov", "fp32"]
    assert plain.against_plain == [1, 1, 1]
    for row in (plain, markov):
        assert row.rounds == 2
        assert row.wall_ms is not None
        assert row.images_per_s == pytest.approx(2 / (row.wall_ms[0] / 1e3))
        assert row.peak_mb is not None
        assert row.peak_mb > 4
    assert (rows["markov+graph", "fp32"].status, rows["markov", "fp16"].status) == ("skipped",) * 2
    assert "CUDA device" in rows["markov+graph", "fp32"].note
    sent.clear()
    gpu_timing.training_steps(_job(), sent.append)
    steps = {row.what: row for row in sent}
    assert steps["gradients markov"].bound == 1e-5
    for arm in ("plain", "plain-codes", "causal", "markov"):
        assert steps[f"step {arm}"].ms is not None
        assert steps[f"step {arm}"].peak_mb is not None
    sent.clear()
    gpu_parts.agreement(_job(), sent.append)
    found = {(row.what, row.dtype): row for row in sent}
    assert found["greedy codes causal", "fp32"].value == 0
    assert found["greedy codes causal", "fp32"].bound == 0
    error = found["logits markov", "bf16"].value
    assert error is not None
    assert 1e-4 < error < gpu_parts.LOGITS_BOUND


def test_the_training_takes_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, size=(8, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(8) % 2
    np.savez(
        tmp_path / "images.npz", images=images, labels=labels, held_out=images[:4],
        held_out_labels=labels[:4],
    )  # fmt: skip
    monkeypatch.setattr(gpu_training, "PROBE_STEPS", 2)
    monkeypatch.setattr(gpu_training, "LEAST_STEPS", 3)
    monkeypatch.setattr(gpu_training, "SAMPLES", 4)
    monkeypatch.setattr(
        gpu_training, "affordable", lambda *_: dict.fromkeys(gpu_training.STAGES, 3)
    )
    sent: list[Row] = []
    gpu_training.cifar10(_job(arrays=tmp_path / "images.npz"), sent.append)
    assert [row.what for row in sent] == [
        f"{stage}, {steps} steps, {judge}"
        for steps in (2, 3)
        for stage, judge in gpu_training.STAGES.items()
    ]
    assert all(row.images_per_s and row.value is not None for row in sent)
    sent.clear()
    gpu_training.cifar10(_job(), sent.append)
    assert [(row.status, "--cifar FILE" in row.note) for row in sent] == [("skipped", True)]


def test_steps_fit_the_time_and_the_preset() -> None:
    optims = gpu_training.stage_optims(gpu_training.get_preset("cifar10"))
    rates = {"classifier": 64.0, "tokenizer": 640.0, "markov": 1e9}  # 1 and 10 steps a second
    steps = gpu_training.affordable(optims, rates, 100.0, None)
    assert steps == {"classifier": 10, "tokenizer": 350, "markov": 3000}
    assert set(gpu_training.affordable(optims, rates, -5.0, 4).values()) == {0}


@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (SkipArmError("not here"), "skipped", "not here"),
        (ArmFailedError("it broke"), "failed", "it broke"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "failed", "out of memory"),
        (ValueError("one\ntwo"), "failed", "ValueError: one"),
    ],
)
def test_an_arm_that_cannot_be_done_is_a_row(error: Exception, status: str, note: str) -> None:
    sent: list[Row] = []
    with gpu_job.attempt(_job(), sent.append, "arm", "bf16", 8) as tried:
        raise error
    assert sent == [Row(what="arm", status=status, dtype="bf16", batch=8, note=note)]
    assert tried.out_of_memory == (note == "out of memory")


def test_an_arm_that_broke_when_it_was_made_ready_is_no_arm_that_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a capture runs out of memory: the row must say so."""

    def broken(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr("benchmarks.arms.GraphedSampler", broken)
    sent: list[Row] = []
    gpu_timing.sampling_arms(["markov+graph"], _job(), sent.append)
    assert [(row.status, row.note) for row in sent] == [
        ("failed", "operation not permitted when stream is capturing")
    ]


def test_where_no_time_is_left_nothing_is_begun() -> None:
    sent: list[Row] = []
    gpu_timing.sampling_arms(["plain", "markov"], _job(limit_s=0.0), sent.append)
    assert [(row.what, row.status) for row in sent] == [("plain", "skipped"), ("markov", "skipped")]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0001e-4])
def test_a_value_beyond_its_bound_or_no_number_has_failed(tmp_path: Path, value: float) -> None:
    part = Part("part", status="ok")
    results = Results(tmp_path, {}, [part], complete=True)
    results.add(part, Machine({"card": "card"}))
    results.add(part, Row(what="check", value=value, bound=1e-4))
    assert not results.ok
    text = (tmp_path / "gpu_check.json").read_text()
    assert not {"NaN", "Infinity"} & set(text.replace(",", " ").split())
    results.add(part, Row(what="check", value=1e-5, bound=1e-4))
    assert results.ok


def test_a_log_is_cut_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"first" + b"\xff" * (3 << 20) + b"last")
    text = gpu_check.log_tail(tmp_path / "log")
    assert text.endswith("last")
    assert len(text) <= 1 << 20
    assert gpu_check.log_tail(tmp_path / "none") == ""


def test_the_parts_stand_in_their_order() -> None:
    names = [plan.name for plan in gpu_check.plans(SIZES["d16"], (64, 1, 8), trains=True)]
    assert names == [
        "environment", "parity", "sampling-64", "sampling-1", "sampling-8", "graphs", "compile",
        "train-step", "agreement", "gpu-tests", "cifar10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--minutes", "0"], "--minutes must be 0.1 or more, got 0"),
        (["--minutes", "nan"], "--minutes must be 0.1 or more, got nan"),
        (["--minutes", "long"], "argument --minutes: invalid float value: 'long'"),
        (["--batch", "4", "4"], "--batch names a batch twice"),
        (["--batch", "0"], "argument --batch: 0 is not positive"),
        (["--cifar", "none.npz"], "none.npz is not a file: give a .npz or"),
        (["--parts", "party"], "--parts party: there is no such part; there are environment, par"),
        (["--device", "tpu"], "no device 'tpu': use cpu, cuda or cuda:1"),
        (["--size", "huge"], "argument --size: invalid choice: 'huge'"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    try:
        status = gpu_check.main(["--out", str(tmp_path / "out"), *DRY, *argv])
    except SystemExit as stop:
        status = int(stop.code or 0)
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1)
    assert message in error
    assert error.startswith("gpu_check: ")
    assert not (tmp_path / "out").exists()


def test_a_directory_of_results_or_a_file_in_its_place_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gpu_check.json").write_text("{}")
    assert gpu_check.main(["--out", str(tmp_path), *DRY]) == 2
    assert "holds the results of another run: give another one" in capsys.readouterr().err
    assert (tmp_path / "gpu_check.json").read_text() == "{}"
    assert gpu_check.main(["--out", str(tmp_path / "gpu_check.json" / "x"), *DRY]) == 2
    assert "cannot be made: Not a directory" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_dry_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    assert "--device cpu --size tiny" in capsys.readouterr().err


def test_without_pytest_the_tests_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    sent: list[Row] = []
    gpu_parts.gpu_tests(_job(), sent.append)
    assert [(row.status, row.note) for row in sent] == [("skipped", "pytest is not installed")]


def test_the_tests_marked_gpu_run_without_the_platform(tmp_path: Path) -> None:
    """As on a machine that has torch, numpy, safetensors and pytest alone."""
    code = (
        "import sys, torch\n"
        "from benchmarks import gpu_check, gpu_parts\n"
        "for name in ('ray', 'srdd_platform', 'pandas', 'PIL'): sys.modules[name] = None\n"
        "from benchmarks.gpu_pytest import run_marked\n"
        "rows = []\n"
        "run_marked(gpu_parts.ROOT, rows.append)\n"
        "print('ROWS', len(rows), {row.status for row in rows}, {row.note for row in rows})\n"
    )
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    (last,) = [line for line in run.stdout.splitlines() if line.startswith("ROWS")]
    if torch.cuda.is_available():
        assert "failed" not in last
    else:
        assert last.endswith("{'skipped'} {'no CUDA device'}")
        assert int(last.split()[1]) >= 20
