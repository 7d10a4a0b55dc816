"""The parts of a GPU check that are not timings of arms: machine, agreement, tests, a training."""

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import ceilings, command, parity, sampling
from benchmarks.arms import ArmName, Lab
from benchmarks.command import DTYPES
from benchmarks.gpu_job import Job, Send, attempt
from benchmarks.gpu_results import Machine, Row
from benchmarks.gpu_timing import label
from benchmarks.oracles import PlainOracle
from benchmarks.weights import random_images, random_pipeline, with_mask
from srdd import Pipeline
from srdd.var.masks import Mask

ROOT = Path(__file__).resolve().parents[1]
CFGS = (0.0, 1.5, 4.0)
LOGITS_BOUND = 0.03  # of lower precision, as a share of the norm; bf16 has 0.008 at d16 on a CPU


def environment(job: Job, send: Send) -> None:
    """The machine, and on a GPU the best rates that torch reaches on it."""
    device = job.device(tf32=True)
    torch.empty(1, device=device)
    send(Machine(machine(device)))
    readings = [("copies, GB/s", "", 1e9, partial(ceilings.copy_bytes, device))]
    for dtype in ("bf16", "fp16", "fp32") if job.gpu else ():
        matmul = partial(ceilings.matmul_flops, device, DTYPES[dtype])
        conv = partial(ceilings.conv_flops, device, DTYPES[dtype])
        readings.append(("products, TFLOP/s", dtype, 1e12, matmul))
        readings.append(("convolutions, TFLOP/s", dtype, 1e12, conv))
    for what, dtype, unit, read in readings:
        with attempt(job, send, what, dtype):
            job.require()
            note = "TF32 allowed" if dtype == "fp32" else ""
            send(Row(what=what, dtype=dtype, value=read() / unit, note=note))


def machine(device: torch.device) -> dict[str, Any]:
    """What is known of it without asking anybody else."""
    found: dict[str, Any] = {
        "card": command.environment(device)["name"],
        "torch": str(torch.__version__),
        "commit": commit(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found["memory_gb"] = round(card.total_memory / 1e9, 1)
        found["free_gb"] = round(torch.cuda.mem_get_info(device)[0] / 1e9, 1)
        found["processors"] = card.multi_processor_count
        found["capability"] = f"{card.major}.{card.minor}"
        found["cudnn"] = torch.backends.cudnn.version()
        drivers = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found["driver"] = drivers and drivers.splitlines()[0]
    return found


def commit() -> str | None:
    """The commit of this checkout, marked where files differ from it; None without git."""
    if _output("git", "-C", str(ROOT), "rev-parse", "--show-toplevel") != str(ROOT):
        return None
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}, changed" if head and changed else head


def parity_with_plain(job: Job, send: Send) -> None:
    """Ours beside the plain loop in float32: latents, codes, logits, whole loops, images."""
    device, size, batch = job.device(), job.size, job.batches[0]
    causal = random_pipeline(size, device, job.seed)
    pipelines: dict[Mask, Pipeline] = {"block_causal": causal}
    pipelines["markov"] = with_mask(causal, size, "markov")
    oracle = PlainOracle(pipelines)
    for check in parity.all_checks(oracle, size, pipelines, batch, CFGS, job.seed):
        what = f"{check.what} {check.mask}".strip()
        send(
            Row(
                what=what,
                dtype="fp32",
                batch=batch,
                value=float(check.value),
                bound=float(check.bound),
                note=check.note,
            )
        )
        if job.left_s < 0:
            send(Row(what="other comparisons", status="skipped", note="no time was left"))
            return


def agreement(job: Job, send: Send) -> None:
    """What lower precision changes: logits beside those of float32, greedy codes that differ."""
    device, batch = job.device(), job.batches[0]
    lab = Lab(job.size, device, None, sampling.CFG, job.seed)
    low = ("bf16", "fp16") if job.gpu else ("bf16",)
    labels_B, _ = lab.inputs(batch)
    with torch.no_grad():
        codes_BL = lab.base.tokenizer.encode(random_images(job.size, batch, device, job.seed))
        for mask in parity.MASKS:
            exact = lab.pipeline(mask, "fp32").transformer(labels_B, codes_BL)
            for dtype in low:
                what, note = f"logits {mask}", "distance from those of fp32 over their norm"
                with attempt(job, send, what, dtype, batch):
                    job.require()
                    logits = lab.pipeline(mask, dtype).transformer(labels_B, codes_BL)
                    value = ((logits.float() - exact).norm() / exact.norm()).item()
                    bound = LOGITS_BOUND
                    send(
                        Row(
                            what=what, dtype=dtype, batch=batch, value=value, bound=bound, note=note
                        )
                    )
    masks = ("causal", "markov")
    arms = [f"{base}:fp32" for base in masks] + [
        f"{base}:{dtype}" for dtype in low for base in masks
    ]
    for arm in [*arms, "markov+graph:fp32", "markov+graph:bf16", "markov+int8:fp32"]:
        name = ArmName.parse(arm, "fp32", "fp32")
        what = f"greedy codes {label(name)}"
        with attempt(job, send, what, name.dtype, batch):
            job.require()
            found = sampling.greedy_row(lab, name, batch)
            send(
                Row(
                    what=what,
                    dtype=name.dtype,
                    batch=batch,
                    value=1 - found["share"],
                    bound=0.0 if found["must_be_equal"] else None,
                    note="share that differs from the plain loop's in fp32",
                )
            )


def gpu_tests(job: Job, send: Send) -> None:
    """The tests marked ``gpu``, a row each."""
    if importlib.util.find_spec("pytest") is None:
        send(Row(what="tests marked gpu", status="skipped", note="pytest is not installed"))
        return
    from benchmarks.gpu_pytest import run_marked

    job.device()
    run_marked(ROOT, send)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What a program prints; None where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip() or None
