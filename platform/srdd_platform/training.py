"""Training on Ray Train: what one worker does, and the driver that starts and watches runs.

A :class:`~srdd_platform.jobs.Job` is everything a worker needs, by value and by path. The worker
runs the science's plain loop (:func:`srdd.train.loop.fit`) on its slice of each global batch. One
Ray Train run a run directory: the same name resumes from the last checkpoint that Ray registered.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from srdd.errors import UserError
from srdd.fields import from_dict
from srdd.train.config import OptimConfig
from srdd.train.loop import fit
from srdd.train.tokenizer import TokenizerTask
from srdd_platform.batches import batches
from srdd_platform.checkpoints import read_state, write_state
from srdd_platform.data import load_images
from srdd_platform.files import write_json
from srdd_platform.jobs import Job
from srdd_platform.meter import Watch
from srdd_platform.parallel import make_workers
from srdd_platform.runs import failure
from srdd_platform.tasks import begin_from, build_task
from srdd_platform.validation import validate

SEED_IMAGES = 256  # whose latents seed the codebook
KEEP_CHECKPOINTS = 2
MAX_FAILURES = 3  # lost workers; an error that repeats is not retried


def worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs. ``config`` is a :class:`Job` as a dict."""
    job = Job(**config)
    if job.device == "cpu":
        torch.set_num_threads(job.threads)
    run, device = Path(job.run), torch.device(job.device)
    optim = from_dict(OptimConfig, job.settings["optim"], "optim")
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    half = optim.precision == "bfloat16"
    reduce = make_workers(job.parallel, rank, world, device, half=half)
    task = build_task(job)
    reduce.place(task, device)
    resume = _load_checkpoint(job)
    if resume is None and job.init_from:
        begin_from(task, Path(job.init_from))
    if resume is None and isinstance(task, TokenizerTask):
        images, _ = load_images(job.dataset("train"), SEED_IMAGES)
        task.seed_codebook(images.to(device))
    watch = Watch(job, task, device, reduce)
    watch.begin(int(resume["step"]) if resume else 0)

    def on_checkpoint(step: int, state: dict[str, Any]) -> None:
        name = f"step_{step:06d}"
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = None
            if reduce.rank == 0:
                write_state(Path(directory), state, job, reduce.world)
                checkpoint = Checkpoint.from_directory(directory)
            ray.train.report(
                {"step": step}, checkpoint=checkpoint, checkpoint_dir_name=name
            )  # every worker reports: it is a barrier

    def validated() -> dict[str, float]:
        whole = reduce.assembled(task)
        if reduce.rank != 0:  # they wait at the next step
            return {}
        found = validate(whole, job, device)
        return {name: value for name, value in found.items() if name != "n"}

    def on_grid(step: int) -> None:
        whole = reduce.assembled(task)
        if reduce.rank == 0:
            watch.grid(step, whole)

    try:
        ema = fit(
            task,
            optim,
            lambda step: watch.meter.stream(batches(job, reduce, step, device)),
            extend_to=job.extend_to,
            resume=resume,
            wrap=reduce.wrap,
            reduce=reduce,
            log_every=job.log_every,
            on_log=watch.log,
            checkpoint_every=job.checkpoint_every,
            on_checkpoint=watch.meter.apart(on_checkpoint),
            validate_every=job.validate_every,
            validate=watch.meter.apart(validated),
            grid_every=job.grid_every,
            on_grid=watch.meter.apart(on_grid),
        )
        with ema.applied():
            whole = reduce.assembled(task)
            if reduce.rank == 0:
                found = validate(whole, job, device)
                watch.grid(job.steps, whole)
        if reduce.rank == 0:
            write_json(run / "validation.json", found)
    except (FloatingPointError, UserError) as error:  # would only repeat: no retry
        if reduce.rank == 0:
            write_json(run / "failure.json", {"error": str(error)})


def _load_checkpoint(job: Job) -> dict[str, Any] | None:
    """The state of the last checkpoint that Ray registered, if any."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as directory:
        return read_state(Path(directory), job)


def run_training(job: Job) -> str:
    """Run a job under Ray Train, blocking; returns the directory of the last checkpoint.

    Runs in a Ray task, so that several trainings share one driver.
    """
    resources = {"CPU": float(job.threads)} | ({"GPU": 1.0} if job.device == "cuda" else {})
    trainer = TorchTrainer(
        worker,
        train_loop_config=asdict(job),
        scaling_config=ScalingConfig(
            num_workers=job.workers,
            use_gpu=job.device == "cuda",
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(Path(job.run).resolve()),
            checkpoint_config=CheckpointConfig(num_to_keep=KEEP_CHECKPOINTS),
            failure_config=FailureConfig(
                max_failures=MAX_FAILURES,
                controller_failure_limit=MAX_FAILURES,
            ),
        ),
    )
    result = trainer.fit()
    if result.checkpoint is None:
        raise UserError(failure(Path(job.run)) or f"{job.run}: training ended without a checkpoint")
    return str(result.checkpoint.path)
