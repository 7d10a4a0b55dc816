"""Advice about memory is advice that works: it is followed here."""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from srdd.presets import get_preset
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.validation import to_dict
from srdd.var.config import TransformerConfig
from srdd_platform.cli import main as cli
from srdd_platform.core.files import write_json
from srdd_platform.train import dry_run
from srdd_platform.train.estimate import worker_memory
from srdd_platform.train.job import Job
from srdd_platform.train.kind import Inputs, Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.memory_advice import SPARE, advice_to_fit, fits, parts_that_fit

MB = 10**6


def tokenizer_job(preset: str) -> Job:
    chosen = get_preset(preset)
    settings = Settings(
        model=chosen.tokenizer, loss=chosen.tokenizer_loss, optim=chosen.tokenizer_optim
    )
    return Job(kind=KINDS["tokenizer"], run="", data="", settings=settings)


@pytest.fixture
def transformer_job(tmp_path: Path) -> Job:
    """A transformer of 8 blocks on 680 codes; its tokenizer is a configuration alone."""
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    tokenizer = replace(get_preset("mini-imagenet").tokenizer, patch_nums=sides)
    write_json(tmp_path / "tokenizer" / "config.json", {"kind": "tokenizer", **to_dict(tokenizer)})
    model = TransformerConfig(patch_nums=sides, depth=8, width=256, num_heads=4)
    model = replace(
        model, vocab_size=tokenizer.vocab_size, z_channels=tokenizer.z_channels,
        num_phi=tokenizer.num_phi,
    )  # fmt: skip
    optim = OptimConfig(steps=10, batch_size=8)
    settings = Settings(
        model=model, loss=TransformerLossConfig(), optim=optim, more={"init_gate": 1e-3}
    )
    inputs = Inputs(tokenizer=str(tmp_path / "tokenizer"))
    return Job(kind=KINDS["transformer"], run="", data="", settings=settings, inputs=inputs)


def test_at_full_size_the_parts_advised_fit_and_fewer_do_not() -> None:
    """The 256 px tokenizer needs 141 GB at its batch size; two parts do not bring it to 17."""
    job, free = tokenizer_job("mini-imagenet"), 17 * 10**9
    assert worker_memory(job).total > 140 * 10**9
    parts = parts_that_fit(job, free)
    assert parts == 16
    assert advice_to_fit(job, free) == "give --accumulate 16 (4 at once, the same model)"
    assert fits(worker_memory(job.with_optim(accumulate=parts)), free)
    for fewer in (2, 9, 12):
        assert not fits(worker_memory(job.with_optim(accumulate=fewer)), free)


def followed(job: Job, advice: str) -> Job:
    """A job with the options that the advice names."""
    given = dict(re.findall(r"--(accumulate|workers) (\d+)", advice))
    optim = {"accumulate": int(given.get("accumulate", 1)), "recompute": "--recompute" in advice}
    job = job.with_optim(**optim)
    if "--parallel fsdp" in advice:
        runtime = replace(job.runtime, parallel="fsdp", workers=int(given["workers"]))
        job = replace(job, runtime=runtime)
    return job


def test_each_change_advised_for_a_transformer_is_enough(transformer_job: Job) -> None:
    job = transformer_job

    def memory(**optim: object) -> float:
        return SPARE * worker_memory(job.with_optim(**optim)).total

    one, again = memory(accumulate=8), memory(accumulate=8, recompute=True)
    asked = {
        "--accumulate": one + MB,
        "--recompute": again + MB,
        "--parallel fsdp": again - MB,
    }
    for option, free in asked.items():
        advice = advice_to_fit(job, int(free))
        assert advice.startswith(f"give {option}"), (option, advice)
        assert fits(worker_memory(followed(job, advice)), int(free)), advice
    assert advice_to_fit(job, MB).startswith("train a smaller model")


def test_the_command_with_its_own_advice_has_no_more_to_say(
    digits_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dry_run, "free_memory", lambda device: 40 * MB)
    command = ["srdd", "train", "tokenizer", "--data", str(digits_shards), "--max-steps", "10"]
    command += ["--out", str(tmp_path / "run"), "--dry-run"]

    def said(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", [*command, *more])
        cli.main()
        return capsys.readouterr().out

    advice = re.search(r"should be: give (--accumulate \d+) ", said())
    assert advice is not None
    assert "Free here" not in said(*shlex.split(advice[1]))


PEAK = Path(__file__).parents[2] / "data" / "training_peak.py"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_real_training_in_the_parts_advised_takes_less_than_was_free() -> None:
    job, free = tokenizer_job("cifar10"), 250 * MB
    parts = parts_that_fit(job, free)
    assert parts is not None
    assert parts > 2

    def taken(parts: int) -> int:
        command = [sys.executable, str(PEAK), "64", str(parts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert taken(parts) < free < taken(1)
