"""What one worker of a training does under Ray Train.

It builds the task, its data, the storage of its checkpoints and its monitor once, and runs the
plain loop (:func:`srdd.train.loop.fit`) on its slice of each global batch.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero

from srdd.compiling import check_machine
from srdd.errors import UserError
from srdd.train.loop import Hook, Log, checkpoint_hook, fit
from srdd.train.task import Batch, Task
from srdd_platform.core.files import write_json
from srdd_platform.core.storage import Storage, open_storage
from srdd_platform.train.batches import batches
from srdd_platform.train.checkpoints import read_checkpoint, write_checkpoint
from srdd_platform.train.data import TrainingData, open_data
from srdd_platform.train.job import Job, Runtime, parse_job
from srdd_platform.train.monitor import Watch
from srdd_platform.train.out_of_memory import tells_of_memory
from srdd_platform.train.parallel import Workers, make_workers
from srdd_platform.train.validation import validate


@tells_of_memory
def worker(config: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs. ``config`` is a job's :meth:`~Job.to_plain`.

    Returns:
        Why the training cannot go on, where another try would end alike; else None.
    """
    job = parse_job(config)
    try:
        _train(job)
    except (FloatingPointError, UserError) as error:
        if ray.train.get_context().get_world_rank() == 0:
            with suppress(OSError):  # the disk may be full
                write_json(Path(job.run) / "failure.json", {"error": str(error)})
        return str(error)
    return None


def _train(job: Job) -> None:
    """Train a job as one of its workers, from the last checkpoint on."""
    run, runtime, optim = Path(job.run), job.runtime, job.optim
    if runtime.device == "cpu":
        torch.set_num_threads(runtime.threads)
    device = check_machine(runtime.device, compiled=optim.compile)
    workers = _this_worker(job, device)
    task, data = job.build_task(), open_data(job)
    workers.place(task, device)
    storage = open_storage(job.run, runtime.checkpoints)
    resume = _load_checkpoint(job, storage)
    if resume is None:
        _begin(job, task, data)
    watch = Watch(run, job.kind.name, task, data, optim, workers, device)
    watch.begin(int(resume["step"]) if resume else 0)
    parts = _Parts(task, data, storage, watch, workers, job.config_hash)

    def stream(step: int) -> Iterator[Batch]:
        own = batches(data, optim, workers, range(step, job.steps), device)
        return watch.meter.stream(own)

    ema = fit(
        task,
        optim,
        stream,
        extend_to=job.extend_to,
        resume=resume,
        reduce=workers,
        log=parts.log(runtime),
        hooks=parts.hooks(runtime),
    )
    with ema.applied():
        parts.finish(run, job.steps)


def _this_worker(job: Job, device: torch.device) -> Workers:
    """The place of this process among those that train the job."""
    context, half = ray.train.get_context(), job.optim.precision == "bfloat16"
    rank, world = context.get_world_rank(), context.get_world_size()
    return make_workers(job.runtime.parallel, rank, world, device, half=half)


def _load_checkpoint(job: Job, storage: Storage) -> dict[str, Any] | None:
    """The state of the last checkpoint that Ray registered, if any."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    # With FSDP a worker reads its shard, and one mapped copy serves all of a node.
    mapped = job.runtime.parallel == "fsdp"
    return read_checkpoint(storage, checkpoint.path, job.config_hash, mapped=mapped)


def _begin(job: Job, task: Task, data: TrainingData) -> None:
    """Make a fresh task ready: with the weights it begins from, and prepared on images."""
    if job.kind.begin is not None and job.inputs.init_from:
        job.kind.begin(task, Path(job.inputs.init_from))
    task.prepare(data.images.first)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one worker has of a training, and what it does with them between updates."""

    task: Task
    data: TrainingData
    storage: Storage
    watch: Watch
    workers: Workers
    config_hash: str

    def log(self, runtime: Runtime) -> Log:
        """What becomes of the metrics; time for validation is not part of an update."""
        return Log(
            write=self.watch.log,
            every=runtime.log_every,
            validate=self.watch.meter.apart(self.validate),
            validate_every=runtime.validate_every,
        )

    def hooks(self, runtime: Runtime) -> list[Hook]:
        """Previews and checkpoints; their time is not part of an update."""
        preview = self.watch.meter.apart(self.preview)
        return [
            Hook(
                run=lambda step, _: preview(step), every=runtime.grid_every,
                after_faults=True, with_average=True,
            ),
            checkpoint_hook(runtime.checkpoint_every, self.watch.meter.apart(self.save)),
        ]  # fmt: skip

    def validate(self) -> dict[str, float]:
        """Metrics on held-out data; on other workers than the first, nothing."""
        whole = self.workers.assembled(self.task)
        if self.workers.rank != 0:  # they wait at the next step
            return {}
        found = validate(whole, self.data)
        return {name: value for name, value in found.items() if name != "n"}

    def preview(self, step: int) -> None:
        """Write the grid of a step."""
        whole = self.workers.assembled(self.task)
        if self.workers.rank == 0:
            self.watch.grid(step, whole)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint and report it to Ray.

        Raises:
            UserError: it cannot be written; every worker raises it.
        """
        checkpoint, trouble = None, None
        if self.workers.rank == 0:
            try:
                path = write_checkpoint(self.storage, state, self.config_hash, self.workers.world)
                checkpoint = Checkpoint(path, self.storage.filesystem)
            except (OSError, UserError) as error:
                why = getattr(error, "strerror", None) or error
                trouble = (
                    f"cannot write the checkpoint of step {step} to {self.storage.name} ({why}): "
                    "those before are kept; make room, then give the same command again"
                )
        if self.workers.world > 1:  # all of them stop, or none
            trouble = broadcast_from_rank_zero(trouble)
        if trouble:
            raise UserError(trouble)
        ray.train.report(
            {"step": step},
            checkpoint=checkpoint,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,  # it is there already
        )  # every worker reports: it is a barrier

    def finish(self, run: Path, step: int) -> None:
        """Write ``validation.json`` and the last grid of a run."""
        whole = self.workers.assembled(self.task)
        if self.workers.rank == 0:
            found = {**validate(whole, self.data), **whole.baseline(self.data.train_inputs)}
            self.watch.grid(step, whole)
            write_json(run / "validation.json", found)
