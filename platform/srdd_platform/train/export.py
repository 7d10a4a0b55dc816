"""What a finished training leaves behind: ``model/``, from its last checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch

from srdd.errors import UserError
from srdd.train.ema import finished_weights
from srdd_platform.core.files import atomic_path
from srdd_platform.core.runs import failure
from srdd_platform.core.storage import open_storage
from srdd_platform.train.checkpoints import read_checkpoint
from srdd_platform.train.extend import mark_finished
from srdd_platform.train.job import Job


def finish(job: Job, checkpoint: str) -> None:
    """Write ``model/`` from the last checkpoint: a model or pipeline directory, whole or absent."""
    run = Path(job.run)
    storage = open_storage(job.run, job.runtime.checkpoints)
    mapped = job.runtime.parallel == "fsdp"
    state = read_checkpoint(storage, checkpoint, job.config_hash, mapped=mapped)
    if int(state["step"]) != job.steps:
        raise UserError(failure(run) or f"{job.run} stopped at step {state['step']}")
    with torch.random.fork_rng(devices=[]):  # losses are no part of a model
        task = replace(job, inputs=replace(job.inputs, lpips=())).build_task()
    task.module.load_state_dict(finished_weights(state))
    task.module.eval()
    with atomic_path(run / "model", replace_directory=True) as directory:
        task.export(directory, job.store().manifest.classes)
    mark_finished(run)
