"""Training on Ray Train: what one worker does, and the driver that starts and watches runs.

A :class:`~srdd_platform.train.job.Job` is everything a worker needs, by value and by path. It
runs the science's plain loop (:func:`srdd.train.loop.fit`) on its slice of each global batch. One
Ray Train run a run directory: the same name resumes from the last checkpoint that Ray registered.
"""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from srdd.compiling import check_machine
from srdd.errors import UserError
from srdd.train.config import OptimConfig
from srdd.train.loop import fit
from srdd.train.var.tokenizer import TokenizerTask
from srdd.validation import from_dict
from srdd_platform.core.files import write_json
from srdd_platform.core.ray_environment import environment
from srdd_platform.core.runs import failure
from srdd_platform.core.storage import Storage, open_storage
from srdd_platform.data.dataset import load_images
from srdd_platform.train.batches import batches
from srdd_platform.train.checkpoints import last_step, read_checkpoint, write_checkpoint
from srdd_platform.train.job import Job
from srdd_platform.train.monitor import Watch
from srdd_platform.train.out_of_memory import tells_of_memory
from srdd_platform.train.parallel import make_workers
from srdd_platform.train.placement import Need
from srdd_platform.train.tasks import begin_from, build_task
from srdd_platform.train.validation import baseline, validate
from srdd_platform.train.worker_timeout import Patience

SEED_IMAGES = 256  # whose latents seed the codebook
STARTS = 4  # times that workers are started before a training gives up for lack of room
START_S = 30.0  # least time for each
RESIZE_S = 30.0  # between looks at whether an elastic training may grow
POLL_S = 0.5  # between looks at the workers: a lost one is seen, a checkpoint registered


@tells_of_memory
def worker(config: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs. ``config`` is a :class:`Job` as a dict.

    Returns:
        Why the training cannot go on, where another try would end alike; else None.
    """
    job = Job(**config)
    try:
        _train(job)
    except (FloatingPointError, UserError) as error:
        if ray.train.get_context().get_world_rank() == 0:
            with suppress(OSError):  # the disk may be full
                write_json(Path(job.run) / "failure.json", {"error": str(error)})
        return str(error)
    return None


def _train(job: Job) -> None:
    if job.device == "cpu":
        torch.set_num_threads(job.threads)
    run = Path(job.run)
    optim = from_dict(OptimConfig, job.settings["optim"], "optim")
    device = check_machine(job.device, compiled=optim.compile)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    half = optim.precision == "bfloat16"
    reduce = make_workers(job.parallel, rank, world, device, half=half)
    task = build_task(job)
    reduce.place(task, device)
    storage = open_storage(job.run, job.checkpoints)
    resume = _load_checkpoint(job)
    if resume is None and job.init_from:
        begin_from(task, Path(job.init_from))
    if resume is None and isinstance(task, TokenizerTask):
        images, _ = load_images(job.dataset("train"), SEED_IMAGES)
        task.seed_codebook(images.to(device))
    watch = Watch(job, task, device, reduce)
    watch.begin(int(resume["step"]) if resume else 0)

    def on_checkpoint(step: int, state: dict[str, Any]) -> None:
        checkpoint, trouble = None, None
        if reduce.rank == 0:
            try:
                path = write_checkpoint(storage, state, job, world)
                checkpoint = Checkpoint(path, storage.filesystem)
            except (OSError, UserError) as error:
                why = getattr(error, "strerror", None) or error
                trouble = (
                    f"cannot write the checkpoint of step {step} to {storage.name} ({why}): those "
                    "before are kept; make room, then give the same command again"
                )
        if world > 1:  # all of them stop, or none
            trouble = broadcast_from_rank_zero(trouble)
        if trouble:
            raise UserError(trouble)
        ray.train.report(
            {"step": step},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,  # it lies there already
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
            found = {**validate(whole, job, device), **baseline(whole, job)}
            watch.grid(job.steps, whole)
    if reduce.rank == 0:
        write_json(run / "validation.json", found)


def _load_checkpoint(job: Job) -> dict[str, Any] | None:
    """The state of the last checkpoint that Ray registered, if any."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    return read_checkpoint(checkpoint.path, job)


def run_training(job: Job) -> str:
    """Run a job under Ray Train, blocking; returns the path of the last checkpoint.

    Runs in a Ray task, so that several trainings share one driver. Workers that are lost start
    again from the last checkpoint, ``job.max_failures`` times; where they got to a new one before,
    the count begins anew. Nodes that a cluster drains first do not count.
    """
    storage = open_storage(job.run, job.checkpoints)
    while True:
        before = last_step(storage)
        try:
            with environment(_bounds(job, storage)):
                result = _trainer(job, storage).fit()
        except TrainingFailedError as error:
            if not lost_workers(error) or last_step(storage) <= before:
                raise
            continue
        if result.return_value:
            raise UserError(f"{job.run}: {result.return_value}")
        if result.checkpoint is None:
            why = failure(Path(job.run)) or f"{job.run}: training ended without a checkpoint"
            raise UserError(why)
        return str(result.checkpoint.path)


def lost_workers(error: TrainingFailedError) -> bool:
    """Whether a training failed because workers died, not because of what they ran."""
    failures = getattr(error, "worker_failures", {}).values()
    return any(isinstance(failure, WorkerHealthCheckFailedError) for failure in failures)


def patience_s(job: Job) -> float:
    """How long a training may be without workers."""
    return max(job.wait_for_resources or 0.0, STARTS * START_S)


def _bounds(job: Job, storage: Storage) -> dict[str, str]:
    """Ray's settings for a job, as variables, which the user's own override."""
    return {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(POLL_S),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(patience_s(job) / STARTS),
        # Ray tags its own metrics of a run with the folder's name, and tags must be ASCII.
        "RAY_TRAIN_METRICS_ENABLED": str(int(_folder(storage)[1].isascii())),
    }


def _folder(storage: Storage) -> tuple[str, str]:
    """The folder of a run's checkpoints: where that is, and its name."""
    above, name = storage.root.rsplit("/", 1)
    return above, name


def _trainer(job: Job, storage: Storage) -> TorchTrainer:
    need = Need(what=job.kind, each=job.each, low=job.fewest, high=job.workers)
    folder, name = _folder(storage)
    return TorchTrainer(
        worker,
        train_loop_config=asdict(job),
        scaling_config=ScalingConfig(
            num_workers=job.workers if need.low == need.high else (need.low, need.high),
            use_gpu=job.device == "cuda",
            resources_per_worker=job.each,
            elastic_resize_monitor_interval_s=RESIZE_S,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=storage.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=job.keep_checkpoints),
            failure_config=FailureConfig(
                max_failures=job.max_failures,
                controller_failure_limit=STARTS - 1,
            ),
            callbacks=[Patience(patience_s(job), str(need))],
        ),
    )
