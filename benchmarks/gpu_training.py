"""The last part of a GPU check: the training from packed images, for the time that is left.

``benchmarks.train_cifar10`` as it is, twice: a few steps of each stage to read the rates, then as
many as the time allows, at most the preset's.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import train_cifar10
from benchmarks.gpu_job import Job, Send, free
from benchmarks.gpu_results import Row
from benchmarks.stages import load_arrays
from srdd.presets import Preset, get_preset
from srdd.train.config import OptimConfig

PRESET = "cifar10"
STAGES = {"classifier": "accuracy", "tokenizer": "psnr", "markov": "nll"}  # and what judges each
OPTIONS = {
    "classifier": "--classifier-steps",
    "tokenizer": "--tokenizer-steps",
    "markov": "--steps",
}
SHARES = {"classifier": 0.1, "tokenizer": 0.35, "markov": 0.25}  # of the time; the rest judges
PROBE_STEPS, PROBE_IMAGES = 20, 2000
LEAST_STEPS = 100  # fewer say no more than the probe
SAMPLES = 2000  # for FID
CPU_IMAGES = 200  # of a training on a CPU


def cifar10(job: Job, send: Send) -> None:
    """Rates of the three stages, and how far they come."""
    if job.arrays is None:
        note = "no packed images: --cifar FILE, from benchmarks/pack_images.py"
        send(Row(what="training", status="skipped", note=note))
        return
    images = len(load_arrays(job.arrays).labels)
    images = images if job.gpu else min(images, CPU_IMAGES)
    optims = stage_optims(get_preset(PRESET))
    largest = max(optim.batch_size for optim in optims.values())
    batch = images // 2 if images < 2 * largest else None
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        probe = dict.fromkeys(STAGES, PROBE_STEPS)
        few = min(images, PROBE_IMAGES)
        for stage, found in _train(job, send, Path(temporary) / "probe", probe, few, batch, 0):
            rates[stage] = found["images_per_s"]
        free(job)
        steps = affordable(optims, rates, job.left_s, batch)
        if min(steps.values()) < LEAST_STEPS:
            counts = ", ".join(f"{stage} {count}" for stage, count in steps.items())
            note = f"too few steps fit in the time that is left: {counts}"
            send(Row(what="training", status="skipped", note=note))
            return
        _train(job, send, Path(temporary) / "run", steps, images, batch, SAMPLES)


def stage_optims(preset: Preset) -> dict[str, OptimConfig]:
    """The preset's settings of each stage."""
    return {
        "classifier": preset.classifier_optim,
        "tokenizer": preset.tokenizer_optim,
        "markov": preset.transformer_optim,
    }


def affordable(
    optims: dict[str, OptimConfig], rates: dict[str, float], left_s: float, batch: int | None
) -> dict[str, int]:
    """Steps of each stage in its share of the time, at most those of its settings."""
    return {
        stage: max(0, min(optim.steps, int(SHARES[stage] * left_s * rate)))
        for stage, optim in optims.items()
        for rate in [rates[stage] / (batch or optim.batch_size)]
    }


def _train(
    job: Job,
    send: Send,
    out: Path,
    steps: dict[str, int],
    images: int,
    batch: int | None,
    samples: int,
) -> list[tuple[str, dict[str, Any]]]:
    """Train the stages, a row each; what each of them found."""
    given: dict[str, Any] = {
        "--out": out, "--preset": PRESET, "--device": job.device_name, "--threads": job.threads,
        "--seed": job.seed, "--limit": images, "--samples": samples,
        "--log-every": max(1, min(steps.values()) // 10), "--checkpoint-every": max(steps.values()),
        **({} if batch is None else {"--batch-size": batch}),
        **({"--depth": 1} if job.size_name == "tiny" else {}),
        **{OPTIONS[stage]: count for stage, count in steps.items()},
    }  # fmt: skip
    argv = [str(job.arrays), "--flip", "--stages", "tokenizer", "markov"]
    argv += [str(text) for pair in given.items() for text in pair]
    args = train_cifar10.parse(argv)
    optims = stage_optims(train_cifar10.sized(get_preset(PRESET), args))
    ended: list[tuple[str, dict[str, Any]]] = []

    def on_stage(stage: str, found: dict[str, Any]) -> None:
        ended.append((stage, found))
        peak = torch.cuda.max_memory_allocated() / 1e6 if job.gpu else None
        judge = STAGES[stage]
        whole = {k: v for k, v in found.items() if "x" not in k and k not in ("n", judge)}
        rest = ", ".join(f"{key} {value:.4g}" for key, value in whole.items())
        send(
            Row(
                what=f"{stage}, {steps[stage]} steps, {judge}",
                dtype={"float32": "fp32", "bfloat16": "bf16"}[optims[stage].precision],
                batch=optims[stage].batch_size,
                images_per_s=found.get("images_per_s"),
                peak_mb=peak,
                value=found[judge],
                note=rest,
            )
        )
        if job.gpu:
            torch.cuda.reset_peak_memory_stats()

    train_cifar10.train(args, on_stage)
    return ended
