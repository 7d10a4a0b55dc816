"""Start trainings from their jobs, watch them, and write what they finished."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from rich.console import Console

from srdd.errors import UserError
from srdd.fields import to_dict
from srdd_platform.data_options import left_out
from srdd_platform.extend import extended, is_finished
from srdd_platform.finish import finish
from srdd_platform.jobs import Job, title
from srdd_platform.progress import bars
from srdd_platform.ray_session import Session
from srdd_platform.runs import failure, note, open_run
from srdd_platform.tasks import begin_from, build_task
from srdd_platform.training import run_training

POLL_S = 0.5


def train(jobs: Sequence[Job], session: Session | None, console: Console) -> None:
    """Train the jobs side by side and write each one's ``model/``. Finished ones are left alone.

    Args:
        jobs: what to train.
        session: Ray; None will do where all jobs are finished.
        console: where progress shows.

    Raises:
        UserError: a directory is taken, the cluster is too small, or a training cannot go on.
    """
    with ExitStack() as stack:
        for job in jobs:
            held = open_run(Path(job.run), f"train {job.kind}", job.settings, job.runtime)
            stack.enter_context(held)
        jobs = [extended(job) for job in jobs]
        todo = [job for job in jobs if not is_finished(Path(job.run))]
        if not todo:
            return
        assert session is not None, "a training needs Ray"
        for line in dict.fromkeys(
            f"Left out of {job.data}: {left_out(job.settings['skipped'])}"
            for job in todo if "skipped" in job.settings
        ):  # fmt: skip
            console.print(line, style="yellow", soft_wrap=True)
        for job in todo:
            (Path(job.run) / "failure.json").unlink(missing_ok=True)
            if job.init_from and not (Path(job.run) / "checkpoints").exists():
                _report_init(job, console)
            session.require(
                cpus=job.workers * job.threads,
                gpus=job.workers if job.device == "cuda" else 0,
            )
        for job, checkpoint in zip(todo, _run_all(todo, console), strict=True):
            finish(job, Path(checkpoint))


def _report_init(job: Job, console: Console) -> None:
    """Say, and keep in ``config.json``, what a run takes from the weights it begins with."""
    with torch.random.fork_rng(devices=[]):
        found = begin_from(build_task(job), Path(job.init_from))
    note(Path(job.run), "init", to_dict(found))
    console.print(f"{title(job)} begins with {len(found.taken)} tensors of {job.init_from}")
    for what, names in (("new", found.new), ("unused", found.unused)):
        if names:
            console.print(f"  {what}: {', '.join(names)}")


def _run_all(jobs: Sequence[Job], console: Console) -> list[str]:
    """Run Ray Train for each job at once; returns their last checkpoints."""
    task = ray.remote(run_training)
    pending = {
        task.options(num_cpus=0, name=f"train {title(job)}").remote(job): job for job in jobs
    }
    order = list(pending)
    results: dict[Any, str] = {}
    with bars(jobs, console) as update:
        while pending:
            done, _ = ray.wait(list(pending), timeout=POLL_S)
            update()
            for ref in done:
                job = pending.pop(ref)
                try:
                    results[ref] = ray.get(ref)
                except RayTaskError as error:
                    raise _explain(job, error) from error
    return [results[ref] for ref in order]


def _explain(job: Job, error: RayTaskError) -> Exception:
    """The error a person can act on, or the original one."""
    why = failure(Path(job.run))
    if why:
        return UserError(why)
    cause = error.cause if isinstance(error.cause, UserError) else None
    failures = getattr(error.cause, "worker_failures", {})
    for inner in failures.values():
        if isinstance(inner, OSError) or "UserError" in type(inner).__name__:
            return UserError(f"{job.run}: {inner}")
    return cause or error
