"""What ``--dry-run`` says, and that it is true."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from srdd.presets import cifar10, digits, var_size
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.train.memory import count_memory
from srdd.train.task import Batch
from srdd.validation import to_dict
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd_platform.core.files import write_json
from srdd_platform.train import dry_run as module
from srdd_platform.train.dry_run import dry_run
from srdd_platform.train.estimate import measure, parameter_counts, worker_memory
from srdd_platform.train.job import Job, Runtime, make_job
from srdd_platform.train.kind import Inputs, Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.options import Options, TokenizerOptions

D16 = TransformerConfig(patch_nums=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16))


def d16(root: Path, data: Path) -> Job:
    """VAR-d16 at 256 px; of its tokenizer there is the configuration alone."""
    tokenizer = TokenizerConfig(resolution=256, patch_nums=D16.patch_nums, vocab_size=4096)
    write_json(root / "tokenizer" / "config.json", {"kind": "tokenizer", **to_dict(tokenizer)})
    optim = OptimConfig(steps=1000, batch_size=224, ema=0.99, precision="bfloat16")
    return Job(
        kind=KINDS["transformer"], run=str(root / "run"), data=str(data),
        settings=settings_of(var_size(D16, 16), optim),
        inputs=Inputs(tokenizer=str(root / "tokenizer")), runtime=Runtime(device="cuda"),
    )  # fmt: skip


def settings_of(model: TransformerConfig, optim: OptimConfig) -> Settings:
    loss = TransformerLossConfig()
    return Settings(model=model, loss=loss, optim=optim, more={"init_gate": 1e-3})


def test_the_command_says_it_all_and_touches_nothing(digits_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable, "-c", "from srdd_platform.cli.main import main; main()", "train",
        "tokenizer",
        "--data", str(digits_shards), "--out", str(run), "--dry-run", "--max-steps", "100",
        "--gan-weight", "0.4", "--batch-size", "16", "--accumulate", "2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not run.exists()
    text = done.stdout
    config = json.loads(text[: text.index("\nData:")])
    assert config["settings"]["optim"]["steps"] == 100
    assert config["settings"]["loss"]["gan"] == 0.4
    assert config["runtime"]["device"] == "cpu"
    assert "Data: 1,437 images; 100 updates of 16 are 1.11 epochs" in text
    assert re.search(r"encoder +100,384 +0\n", text)
    assert re.search(r"discriminator +663,361 +0\n", text)
    assert "with 8 images at once" in text
    found = re.search(r"measured: (\S+) images/s of one worker, MFU \S+%", text)
    assert found is not None
    total = re.search(r"estimate: (\d+):(\d\d):(\d\d) for all updates", text)
    assert total is not None
    h, m, s = map(int, total.groups())
    assert 3600 * h + 60 * m + s == pytest.approx(1600 / float(found[1]), abs=0.6, rel=1e-3)


def test_ray_is_not_started(digits_shards: Path, tmp_path: Path) -> None:
    started = ray.is_initialized()
    options = Options(batch_size=4)
    dry_run(make_job("classifier", digits(), digits_shards, tmp_path / "x", options))
    assert ray.is_initialized() == started
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would be tried on the GPU")
def test_a_model_that_no_memory_here_holds_is_counted(digits_shards: Path, tmp_path: Path) -> None:
    """VAR's d16 has 310 million parameters, and 171 GB of activations at this batch size."""
    text = dry_run(d16(tmp_path, digits_shards))
    assert re.search(r"in all +310,283,520 +168,064\n", text)
    assert re.search(r"weights +1\.24 GB\n", text)
    assert re.search(r"moments +2\.48 GB\n", text)
    assert "No estimate: torch finds no CUDA device here." in text
    assert "861 GFLOPs an image, 192.9 TFLOPs an update" in text
    assert not (tmp_path / "run").exists()


def test_memory_is_shared_by_workers_and_saved_by_parts_and_by_computing_again(
    digits_shards: Path, tmp_path: Path
) -> None:
    job = d16(tmp_path, digits_shards)
    small = TransformerConfig(patch_nums=D16.patch_nums, depth=8, width=256, num_heads=4)
    optim = OptimConfig(steps=10, batch_size=8)

    def memory(optim: OptimConfig, **changes: object):  # type: ignore[no-untyped-def]
        runtime = replace(job.runtime, **changes)  # type: ignore[arg-type]
        return worker_memory(replace(job, settings=settings_of(small, optim), runtime=runtime))

    one = memory(optim)
    assert one.sharing == one.average == 0
    assert memory(replace(optim, ema=0.9)).average == one.gradients
    assert memory(replace(optim, accumulate=4)).activations < 0.3 * one.activations
    assert memory(replace(optim, recompute=True)).activations < 0.6 * one.activations
    two = memory(optim, workers=2)
    assert two.activations < 0.55 * one.activations
    assert two.sharing == one.gradients
    sharded = memory(optim, workers=2, parallel="fsdp")
    assert sharded.moments == one.moments / 2
    assert sharded.activations == two.activations
    assert memory(optim, workers=4, min_workers=2) == two  # as few as there may be


PEAK = Path(__file__).parents[2] / "data" / "training_peak.py"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_counted_is_memory_taken_but_for_the_kernels_own() -> None:
    """Measured on CPU: 0.95 to 1.6 times what is counted, for kernels' buffers and malloc."""
    preset = cifar10()
    inputs = torch.zeros(32, 3, 32, 32, dtype=torch.uint8)
    batch = Batch(inputs, torch.zeros(32, dtype=torch.int64), torch.arange(32), 32)
    settings = Settings(
        model=preset.tokenizer, loss=preset.tokenizer_loss, optim=preset.tokenizer_optim
    )
    job = Job(kind=KINDS["tokenizer"], run="", data="", settings=settings)
    counted = count_memory(job.blank_task(), batch, preset.tokenizer_optim, 0)
    done = subprocess.run(
        [sys.executable, str(PEAK), "32", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0.95 < int(done.stdout) / counted.total < 1.6


@pytest.mark.parametrize("kind", ["tokenizer", "classifier"])
def test_parameters_counted_are_those_of_the_task(
    kind: str, digits_shards: Path, tmp_path: Path
) -> None:
    options = TokenizerOptions(gan_weight=0.4) if kind == "tokenizer" else Options()
    job = make_job(kind, digits(), digits_shards, tmp_path / "run", options)
    counts = parameter_counts(job.blank_task())
    task = job.build_task()
    own = sum(parameter.numel() for parameter in task.module.parameters())
    helper = counts.pop("discriminator", (0, 0))
    assert sum(trained for trained, _ in counts.values()) == own
    assert all(frozen == 0 for _, frozen in counts.values())
    assert (helper[0] > 0) == (kind == "tokenizer")
    assert all(parameter.is_meta for parameter in job.blank_task().module.parameters())


def test_an_update_is_measured_at_its_dearest(digits_shards: Path, tmp_path: Path) -> None:
    """With the discriminator, which begins later; and torch's random numbers stay."""
    options = TokenizerOptions(gan_weight=0.4)
    job = make_job("tokenizer", digits(), digits_shards, tmp_path / "run", options)
    plain = make_job("tokenizer", digits(), digits_shards, tmp_path / "run", TokenizerOptions())
    assert worker_memory(job).helpers == 4 * 4 * 663_361
    assert worker_memory(job).activations > worker_memory(plain).activations
    state = torch.random.get_rng_state()
    pace = measure(job, 3)
    assert pace.images == 3
    assert pace.images_per_s > 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_updates_are_tried_with_as_many_images_as_fit(
    digits_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("tokenizer", digits(), digits_shards, tmp_path / "run", Options(batch_size=64))
    memory = worker_memory(job)
    fixed = memory.total - memory.activations

    def images(free: float, flops: int = 1) -> int:
        peak = module.Peak(flops=1e9, source="")
        return module._affordable(job, memory, flops, peak, int(free))

    assert images(module.SPARE * memory.total + 100) == 64
    assert images(module.SPARE * (fixed + memory.activations / 4) + 100) == 16
    assert images(module.SPARE * fixed) == 0
    assert images(1e12, flops=10**8) == 20  # 3 updates in 30 s at 0.2 GFLOPS
    assert images(1e12, flops=10**10) == 0
    monkeypatch.setattr(module, "free_memory", lambda device: 0)
    text = dry_run(job)
    assert "Free here: 0 B, and 1.5 times the count should be: train a smaller model" in text
    assert "No estimate: one image's updates fit neither" in text
