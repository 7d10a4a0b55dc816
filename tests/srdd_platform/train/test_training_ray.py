"""Ray Train for real: what is killed, full or lost changes nothing; more than one worker."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray import tune
from safetensors.torch import load_file

from srdd.errors import UserError
from srdd.load import load_pipeline
from srdd.presets import Preset, digits
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd_platform.core.ray_session import Session, session
from srdd_platform.core.runs import read_metrics
from srdd_platform.core.storage import open_storage
from srdd_platform.data.codes import encode, load_codes
from srdd_platform.data.shards import prepare
from srdd_platform.train.job import make_job
from srdd_platform.train.launcher import train
from srdd_platform.train.options import Options

pytestmark = pytest.mark.ray
STEPS, EVERY = 40, 10
FULL = (2**16, 2**16)  # bytes that a file may have: logs and metrics fit, a checkpoint does not
DRIVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from srdd.presets import PRESETS
from srdd_platform.cli.main import main
from test_training_ray import small
PRESETS["small"] = small
main()
"""


def small() -> Preset:
    """The digits preset, small; its tokenizer with all that a training can hold as state."""
    base = digits()
    patch_nums = (1, 2, 4)
    return replace(
        base,
        tokenizer=TokenizerConfig(
            resolution=16, patch_nums=patch_nums, vocab_size=32, z_channels=8,
            ch=8, ch_mult=(1, 1, 2), num_res_blocks=1,
        ),
        tokenizer_loss=replace(
            base.tokenizer_loss, restart_every=15, gan=0.2, gan_start=0.3, gan_width=8,
        ),
        tokenizer_optim=replace(base.tokenizer_optim, steps=STEPS, batch_size=33, ema=0.9),
        transformer=TransformerConfig(
            patch_nums=patch_nums, vocab_size=32, z_channels=8, depth=2, width=32, num_heads=2,
            num_classes=10, drop_path=0.1,
        ),
        transformer_optim=replace(base.transformer_optim, steps=STEPS, batch_size=33),
    )  # fmt: skip


@pytest.fixture(scope="module")
def preset() -> Preset:
    return small()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "data"
    prepare(source="digits", resolution=16, out=out)
    return out


@pytest.fixture(scope="module")
def tokenizer(
    ray_session: Session, preset: Preset, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tokenizer trained without interruption by one worker."""
    out = tmp_path_factory.mktemp("runs") / "tokenizer"
    options = Options(checkpoint_every=EVERY)
    train([make_job("tokenizer", preset, data, out, options)], ray_session)
    return out


def weights(run: Path, part: str = "") -> dict[str, Any]:
    return load_file(run / "model" / part / "model.safetensors")


def assert_same(run: Path, other: Path) -> None:
    """The same weights and losses, bit for bit."""
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not a[name].equal(b[name])] == []
    assert (run / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert (run / "validation.json").read_text() == (other / "validation.json").read_text()


def test_a_full_disk_and_a_killed_worker_change_nothing(
    ray_session: Session, preset: Preset, data: Path, tokenizer: Path, tmp_path: Path,
    after_step: Callable[..., Any], kill_worker_after: Callable[[Path, int], Any],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    job = make_job("tokenizer", preset, data, run, Options(checkpoint_every=EVERY))
    fill = after_step(run, 20, lambda pid: psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, FULL))
    with pytest.raises(UserError, match=r"cannot write the checkpoint of step \d+ .*No space left"):
        train([job], ray_session)
    fill.close()
    storage = open_storage(str(run), "")
    left = {path.name for path in (run / "checkpoints").iterdir() if "step" in path.name}
    assert left == set(storage.registered())
    assert left
    kill = kill_worker_after(run, 30)
    train([job], ray_session)
    kill.close()
    assert_same(run, tokenizer)


def test_a_killed_driver_changes_nothing(
    data: Path, tokenizer: Path, tmp_path: Path, bucket: str
) -> None:
    """SIGTERM, then kill -9, then to the end; each with a Ray of its own, the checkpoints in S3."""
    run = tmp_path / "run"
    where = f"{bucket}/runs/tokenizer"
    command = [
        sys.executable, "-c", DRIVER, "train", "tokenizer", "--preset", "small", "--data", data,
        "--out", run, "--checkpoint-every", EVERY, "--checkpoints", where,
    ]  # fmt: skip

    def drive(step: int, number: signal.Signals | None) -> subprocess.CompletedProcess[str]:
        with subprocess.Popen(
            list(map(str, command)), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:  # fmt: skip
            while number and process.poll() is None:
                lines = read_metrics(run)
                if lines and lines[-1]["step"] >= step:
                    process.send_signal(number)
                    break
                time.sleep(0.02)
            out, err = process.communicate(timeout=600)
            family = process.pid
        if number == signal.SIGKILL:  # nobody is left to end Ray: it does so by itself
            for other in psutil.process_iter():
                with suppress(psutil.Error, ProcessLookupError):
                    # Agents write nothing, and try for minutes to tell a dead server of it.
                    if os.getsid(other.pid) == family and "Agent" not in "".join(other.cmdline()):
                        other.wait(timeout=120)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    ended = drive(10, signal.SIGTERM)
    assert ended.returncode == 143
    assert ended.stderr == "srdd: terminated; give the same command again to go on\n"
    assert drive(20, signal.SIGKILL).returncode == -signal.SIGKILL
    assert not (run / "model").exists()
    done = drive(0, None)
    assert done.returncode == 0, done.stderr
    assert "secret" not in "".join((run / "config.json").read_text())
    assert open_storage(str(run), where).registered() == ["step_000030", "step_000040"]
    assert not (run / "checkpoints").exists()
    assert_same(run, tokenizer)


def test_a_run_that_keeps_losing_workers_gives_up(
    ray_session: Session, preset: Preset, data: Path, tmp_path: Path,
    kill_worker_after: Callable[[Path, int], Any],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    options = Options(checkpoint_every=1000, max_failures=0)
    kill = kill_worker_after(run, 10)
    with pytest.raises(UserError, match=r"workers were lost 1 times without a new checkpoint"):
        train([make_job("tokenizer", preset, data, run, options)], ray_session)
    kill.close()


def test_metrics_checkpoints_and_validation_are_on_disk(tokenizer: Path) -> None:
    lines = read_metrics(tokenizer)
    assert [line["step"] for line in lines] == list(range(10, STEPS + 1, 10))
    assert {"loss", "psnr", "vq_4x4", "usage_4x4", "perplexity_1x1", "lr"} <= lines[0].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]
    kept = sorted(path.name for path in (tokenizer / "checkpoints").glob("step_*"))
    assert kept == ["step_000030", "step_000040"]
    manifest = json.loads((tokenizer / "checkpoints" / kept[-1] / "manifest.json").read_text())
    assert manifest["step"] == STEPS
    state = torch.load(tokenizer / "checkpoints" / kept[-1] / "state.pt")
    assert {"ema", "optimizer", "module"} < state.keys()
    assert state["task"]["adversary"]
    validation = json.loads((tokenizer / "validation.json").read_text())
    assert validation["n"] == 360
    assert validation["psnr"] > 10


def test_the_same_command_again_trains_nothing(
    ray_session: Session, preset: Preset, data: Path, tokenizer: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tokenizer.rglob("*") if path.is_file()}
    options = Options(checkpoint_every=EVERY)
    train([make_job("tokenizer", preset, data, tokenizer, options)], None)
    after = {path: path.stat().st_mtime_ns for path in tokenizer.rglob("*") if path.is_file()}
    assert after == before


def test_other_settings_are_refused_with_the_difference(
    ray_session: Session, preset: Preset, data: Path, tokenizer: Path
) -> None:
    job = make_job("tokenizer", preset, data, tokenizer, Options(lr=0.5))
    with pytest.raises(UserError, match=r"optim\.lr: 0\.003 -> 0\.5"):
        train([job], ray_session)


def test_two_workers_train_the_same_tokenizer(
    ray_session: Session, preset: Preset, data: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """The global batch of 33 does not divide by two; restarts of codes happen on the way.

    Sums in another order differ by rounding, which the adversary makes grow from step 12 on.
    """
    run = tmp_path / "two"
    options = Options(workers=2, checkpoint_every=EVERY)
    train([make_job("tokenizer", preset, data, run, options)], ray_session)
    for one, two in zip(read_metrics(tokenizer), read_metrics(run), strict=True):
        rounding = 1e-5 if one["step"] <= 10 else 2e-2
        assert two["loss"] == pytest.approx(one["loss"], rel=rounding)
        assert two["usage_4x4"] == pytest.approx(one["usage_4x4"], abs=0.1)


def test_more_workers_than_the_cluster_has_are_refused_at_once(
    ray_session: Session, preset: Preset, data: Path, tmp_path: Path
) -> None:
    job = make_job("tokenizer", preset, data, tmp_path / "many", Options(workers=9))
    with pytest.raises(UserError, match=r"9 CPU.*2 CPU"):
        train([job], ray_session)


def test_two_masks_train_side_by_side_on_the_same_codes(
    ray_session: Session, preset: Preset, data: Path, tokenizer: Path, tmp_path: Path
) -> None:
    codes = encode(data, tokenizer)
    stamp = (codes / "manifest.json").stat().st_mtime_ns
    assert encode(data, tokenizer) == codes
    assert (codes / "manifest.json").stat().st_mtime_ns == stamp
    codes_nL, _ = load_codes(codes, "train")
    assert codes_nL.shape == (1437, 21)
    jobs = [
        make_job(
            "transformer", preset, data, tmp_path / mask, Options(checkpoint_every=EVERY),
            tokenizer=tokenizer, mask=mask,
        )
        for mask in ("markov", "block_causal")
    ]  # fmt: skip
    train(jobs, ray_session)
    pipelines = [load_pipeline(tmp_path / mask) for mask in ("markov", "block_causal")]
    assert [p.transformer.config.mask for p in pipelines] == ["markov", "block_causal"]
    assert pipelines[0].class_names == tuple("0123456789")
    first, second = (read_metrics(tmp_path / mask) for mask in ("markov", "block_causal"))
    assert first[0]["nll_4x4"] != second[0]["nll_4x4"]
    assert first[-1]["loss"] < first[0]["loss"]


def test_a_loss_that_is_not_finite_stops_with_the_step(
    ray_session: Session, preset: Preset, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "nan"
    job = make_job("tokenizer", preset, data, run, Options(lr=1e18, checkpoint_every=EVERY))
    with pytest.raises(UserError, match=r"not finite at step \d+"):
        train([job], ray_session)
    assert not (run / "model").exists()


def test_a_training_inside_a_tune_trial_has_room_or_says_so(
    ray_session: Session, preset: Preset, data: Path, tmp_path: Path
) -> None:
    """The trial itself holds a part of the cluster while it waits for its training."""
    job = make_job("classifier", preset, data, tmp_path / "run", Options(max_steps=2))
    many = make_job("classifier", preset, data, tmp_path / "many", Options(workers=2))

    def trial(config: dict[str, Any]) -> None:
        with session() as cluster:
            with pytest.raises(UserError) as refused:
                train([many], cluster)
            train([job], cluster)
        tune.report({"refused": str(refused.value)})

    found = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.5}),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
    ).fit()[0]
    assert found.error is None
    assert (
        "needs 2 workers of 1 CPU, but free on the Ray cluster is 1.5 CPUs of 2 CPUs"
        in (found.metrics["refused"])
    )
    assert (tmp_path / "run" / "model").is_dir()
