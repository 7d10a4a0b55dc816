"""A training on Ray Train, from its driver: started, bounded in time, and taken up after losses.

One Ray Train run a run directory: the same name resumes from the last checkpoint that Ray
registered.
"""

from pathlib import Path

from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)
from ray.train.torch import TorchTrainer

from srdd.errors import UserError
from srdd_platform.core.ray_environment import environment
from srdd_platform.core.runs import failure
from srdd_platform.core.storage import Storage, open_storage
from srdd_platform.train.checkpoints import last_step
from srdd_platform.train.job import Job
from srdd_platform.train.placement import Need
from srdd_platform.train.ray_internals import WorkerHealthCheckFailedError
from srdd_platform.train.worker import worker
from srdd_platform.train.worker_timeout import Patience

STARTS = 4  # times that workers are started before a training gives up for lack of room
START_S = 30.0  # least time for each
RESIZE_S = 30.0  # between looks at whether an elastic training may grow
POLL_S = 0.5  # between looks at the workers: a lost one is seen, a checkpoint registered


def run_training(job: Job) -> str:
    """Run a job under Ray Train, blocking; returns the path of the last checkpoint.

    Runs in a Ray task, so that several trainings share one driver. Workers that are lost start
    again from the last checkpoint, ``max_failures`` times; where they got to a new one before, the
    count begins anew. Nodes that a cluster drains first do not count.
    """
    storage = open_storage(job.run, job.runtime.checkpoints)
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
    return max(job.runtime.wait_for_resources or 0.0, STARTS * START_S)


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
    runtime = job.runtime
    need = Need(what=job.kind.name, each=runtime.each, low=runtime.fewest, high=runtime.workers)
    folder, name = _folder(storage)
    return TorchTrainer(
        worker,
        train_loop_config=job.to_plain(),
        scaling_config=ScalingConfig(
            num_workers=runtime.workers if need.low == need.high else (need.low, need.high),
            use_gpu=runtime.device == "cuda",
            resources_per_worker=runtime.each,
            elastic_resize_monitor_interval_s=RESIZE_S,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=storage.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=runtime.keep_checkpoints),
            failure_config=FailureConfig(
                max_failures=runtime.max_failures,
                controller_failure_limit=STARTS - 1,
            ),
            callbacks=[Patience(patience_s(job), str(need))],
        ),
    )
