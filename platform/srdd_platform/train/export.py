"""What a finished training leaves behind: ``model/``, from its last checkpoint."""

from dataclasses import replace
from pathlib import Path

import torch

from srdd.checkpoint import save_model
from srdd.errors import UserError
from srdd.train.classifier import ClassifierTask
from srdd.train.ema import finished_weights
from srdd.train.var.tokenizer import TokenizerTask
from srdd.train.var.transformer import TransformerTask
from srdd.var.config import SamplerConfig, TransformerConfig
from srdd.var.pipeline import Pipeline, load_tokenizer, save_pipeline, save_tokenizer
from srdd_platform.core.files import atomic_path
from srdd_platform.core.runs import failure, tokenizer_dir
from srdd_platform.train.checkpoints import read_checkpoint
from srdd_platform.train.extend import mark_finished
from srdd_platform.train.job import Job
from srdd_platform.train.tasks import build_task

UNCONDITIONAL = "image"  # the one class of an unconditional model


def class_names(job: Job, config: TransformerConfig) -> tuple[str, ...]:
    """The names of a transformer's classes, in label order."""
    return (UNCONDITIONAL,) if config.unconditional else job.store().manifest.classes


def finish(job: Job, checkpoint: str) -> None:
    """Write ``model/`` from the last checkpoint: a model or pipeline directory, whole or absent."""
    state = read_checkpoint(checkpoint, job)
    if int(state["step"]) != job.steps:
        raise UserError(failure(Path(job.run)) or f"{job.run} stopped at step {state['step']}")
    with torch.random.fork_rng(devices=[]):
        task = build_task(replace(job, lpips=()))  # losses are no part of a model
    task.module.load_state_dict(finished_weights(state))
    task.module.eval()
    with atomic_path(Path(job.run) / "model", replace_directory=True) as directory:
        if isinstance(task, TokenizerTask):
            save_tokenizer(task.tokenizer, directory)
        elif isinstance(task, ClassifierTask):
            config = task.classifier.config
            save_model(directory, "classifier", config, task.classifier.state_dict())
        else:
            assert isinstance(task, TransformerTask)
            tokenizer = load_tokenizer(tokenizer_dir(Path(job.tokenizer)))
            names = class_names(job, task.model.config)
            save_pipeline(Pipeline(tokenizer, task.model, SamplerConfig(), names), directory)
    mark_finished(Path(job.run))
