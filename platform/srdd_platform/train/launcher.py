"""Start trainings from their jobs, watch them, and write what they finished."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from srdd.errors import UserError
from srdd.validation import to_dict
from srdd_platform.core.file_errors import explain
from srdd_platform.core.out_of_memory import killed_for_memory
from srdd_platform.core.ray_session import Session
from srdd_platform.core.runs import check_run, failure, note, open_run
from srdd_platform.data.damage import left_out
from srdd_platform.train.checkpoints import check_unmoved, claim_storage
from srdd_platform.train.export import finish
from srdd_platform.train.extend import extended, is_finished
from srdd_platform.train.job import Job
from srdd_platform.train.out_of_memory import advice
from srdd_platform.train.placement import Need, find_room, fit_together, patience
from srdd_platform.train.progress import Display, follow, no_display
from srdd_platform.train.ray_internals import WorkerGroupStartupTimeoutError
from srdd_platform.train.trainer import lost_workers, run_training
from srdd_platform.train.worker_timeout import NoWorkersError

POLL_S = 0.5

logger = logging.getLogger(__name__)


def check_start(job: Job, run: Path) -> None:
    """Refuse before Ray starts what :func:`train` would refuse after it. Nothing is made.

    Args:
        job: the training.
        run: its directory as it was given, for messages.

    Raises:
        UserError: the run directory is no place for the job, has other settings, or has its
            checkpoints elsewhere.
    """
    check_run(run, f"train {job.kind.name}", job.config[0])
    check_unmoved(job.run, job.runtime.checkpoints)


def train(jobs: Sequence[Job], session: Session | None, display: Display = no_display) -> None:
    """Train the jobs side by side and write each one's ``model/``. Finished ones are left alone.

    Args:
        jobs: what to train.
        session: Ray; None will do where all jobs are finished.
        display: shows how far the trainings are.

    Raises:
        UserError: a directory is taken, the cluster is too small, or a training cannot go on.
    """
    with ExitStack() as stack:
        for job in jobs:
            held = open_run(Path(job.run), f"train {job.kind.name}", *job.config)
            stack.enter_context(held)
        jobs = [extended(job) for job in jobs]
        todo = [job for job in jobs if not is_finished(Path(job.run))]
        if not todo:
            return
        assert session is not None, "a training needs Ray"
        skipped = {(job.data, left_out(job.settings.skipped)): None for job in todo}
        for data, what in skipped:
            if what:
                logger.warning("Left out of %s: %s", data, what)
        for job in todo:
            (Path(job.run) / "failure.json").unlink(missing_ok=True)
            storage = claim_storage(job.run, job.runtime.checkpoints, job.config_hash)
            if job.inputs.init_from and not storage.registered():
                _report_init(job)
        if len(todo) == 1 or fit_together(session, [_need(job) for job in todo]):
            groups = [todo]
        else:  # one after the other
            groups = [[job] for job in todo]
        for group in groups:
            placed = _place(group, session)
            for job, checkpoint in zip(placed, _run_all(placed, display), strict=True):
                finish(job, checkpoint)


def _need(job: Job) -> Need:
    runtime = job.runtime
    return Need(what=job.title, each=runtime.each, low=runtime.fewest, high=runtime.workers)


def _place(jobs: Sequence[Job], session: Session) -> list[Job]:
    """The jobs with the numbers of workers that there is room for, all at once."""
    wait_s = patience(session, jobs[0].runtime.wait_for_resources)
    ranges = find_room(session, [_need(job) for job in jobs], wait_s, logger.info)
    placed = []
    for job, (low, high) in zip(jobs, ranges, strict=True):
        most = job.runtime.workers
        if high < most:
            logger.info("%s has room for %d of %d workers", job.title, high, most)
        runtime = replace(job.runtime, min_workers=low, workers=high, wait_for_resources=wait_s)
        placed.append(replace(job, runtime=runtime))
    return placed


def _report_init(job: Job) -> None:
    """Say, and keep in ``config.json``, what a run takes from the weights it begins with."""
    source = job.inputs.init_from
    assert job.kind.begin is not None
    with torch.random.fork_rng(devices=[]):
        found = job.kind.begin(job.build_task(), Path(source))
    note(Path(job.run), "init", to_dict(found))
    logger.info("%s begins with %d tensors of %s", job.title, len(found.taken), source)
    for what, names in (("new", found.new), ("unused", found.unused)):
        if names:
            logger.info("  %s: %s", what, ", ".join(names))


def _run_all(jobs: Sequence[Job], display: Display) -> list[str]:
    """Run Ray Train for each job at once; returns their last checkpoints."""
    task = ray.remote(run_training)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    pending = {
        task.options(num_cpus=0, name=f"train {job.title}", scheduling_strategy=here).remote(
            job
        ): job
        for job in jobs
    }  # on the driver's node: no other that is lost takes them along
    order = list(pending)
    results: dict[Any, str] = {}
    with follow(jobs, display) as update:
        while pending:
            done, _ = ray.wait(list(pending), timeout=POLL_S)
            update()
            for ref in done:
                job = pending.pop(ref)
                try:
                    results[ref] = ray.get(ref)
                except (RayTaskError, OutOfMemoryError) as error:
                    raise explain_failure(job, error) from error
    return [results[ref] for ref in order]


def explain_failure(job: Job, error: RayTaskError | OutOfMemoryError) -> Exception:
    """The error a person can act on, or the original one."""
    if why := failure(Path(job.run)):
        return UserError(why)
    cause: Exception | None = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return cause
    if any(killed_for_memory(inner) for inner in (error, *_causes(cause))):
        return UserError(f"{job.run}: a node ran {advice(job, job.runtime.fewest)}")
    for inner in _causes(cause):
        if isinstance(inner, NoWorkersError):
            return UserError(f"{job.run}: {inner}")
        if isinstance(inner, WorkerGroupStartupTimeoutError):
            return UserError(
                f"{job.run}: its workers did not come up in time; the last checkpoint is kept: "
                "give the same command again when the cluster is less busy, or fewer --workers"
            )
        if isinstance(inner, OSError):
            return UserError(f"{job.run}: {explain(inner) or inner.strerror or inner}")
    if cause is not None and lost_workers(cause):
        return UserError(
            f"{job.run}: workers were lost {job.runtime.max_failures + 1} times without a new "
            "checkpoint; the last one is kept: give the same command again to go on from it"
        )
    return cause or error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error of Ray Train, and those inside it, the innermost first."""
    if error is None:
        return
    wrapped = [
        *getattr(error, "worker_failures", {}).values(),
        getattr(error, "controller_failure", None),
        getattr(error, "_base_exc", None),
        error.__cause__,
    ]
    for inner in wrapped:
        yield from _causes(inner)
    yield error
