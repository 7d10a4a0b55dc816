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
from srdd.train.config import OptimConfig
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
        training, resume = _set_up(job)
        training.train(resume)
    except (FloatingPointError, UserError) as error:
        if ray.train.get_context().get_world_rank() == 0:
            with suppress(OSError):  # the disk may be full
                write_json(Path(job.run) / "failure.json", {"error": str(error)})
        return str(error)
    return None


def _set_up(job: Job) -> tuple["_Training", dict[str, Any] | None]:
    """What this worker has of a training, and the state from which it goes on, if there is one."""
    run, runtime, optim = Path(job.run), job.runtime, job.optim
    if runtime.device == "cpu":
        torch.set_num_threads(runtime.threads)
    device = check_machine(runtime.device, compiled=optim.compile)
    workers = _this_worker(job, device)
    task, data = job.build_task(), open_data(job)
    workers.place(task, device)
    storage = open_storage(job.run, runtime.checkpoints)
    resume = _load_checkpoint(job, storage)
    watch = Watch(run, job.kind.name, task, data, optim, workers, device)
    watch.begin(int(resume["step"]) if resume else 0)
    if resume is None:
        _begin(job, task, data)
    training = _Training(
        run=run, task=task, data=data, optim=optim, steps=job.steps, runtime=runtime,
        storage=storage, config_hash=job.config_hash, watch=watch, workers=workers, device=device,
    )  # fmt: skip
    return training, resume


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Training:
    """What one worker has of a training, and what it does between updates."""

    run: Path  # the run directory
    task: Task
    data: TrainingData
    optim: OptimConfig
    steps: int  # updates in all
    runtime: Runtime
    storage: Storage
    config_hash: str
    watch: Watch
    workers: Workers
    device: torch.device

    def train(self, resume: dict[str, Any] | None) -> None:
        """Train to the last update, from a state or from the first one on."""
        ema = fit(
            self.task,
            self.optim,
            self.batches,
            extend_to=self.steps,
            resume=resume,
            reduce=self.workers,
            log=self.log,
            hooks=self.hooks,
        )
        with ema.applied():
            self.finish()

    def batches(self, step: int) -> Iterator[Batch]:
        """This worker's batches from a step on, counted."""
        steps = range(step, self.steps)
        stream = batches(self.data, self.optim, self.workers, steps, self.device)
        return self.watch.meter.stream(stream)

    @property
    def log(self) -> Log:
        """What becomes of the metrics; time for validation is not part of an update."""
        return Log(
            write=self.watch.log,
            every=self.runtime.log_every,
            validate=self.watch.meter.apart(self.validate),
            validate_every=self.runtime.validate_every,
        )

    @property
    def hooks(self) -> list[Hook]:
        """Previews and checkpoints; their time is not part of an update."""
        apart = self.watch.meter.apart
        preview = apart(self.preview)
        return [
            Hook(
                run=lambda step, _: preview(step), every=self.runtime.grid_every,
                after_faults=True, with_average=True,
            ),
            checkpoint_hook(self.runtime.checkpoint_every, apart(self.save)),
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

    def finish(self) -> None:
        """Write ``validation.json`` and the last grid."""
        whole = self.workers.assembled(self.task)
        if self.workers.rank == 0:
            found = {**validate(whole, self.data), **whole.baseline(self.data.train_inputs)}
            self.watch.grid(self.steps, whole)
            write_json(self.run / "validation.json", found)
