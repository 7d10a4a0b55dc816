"""The task that a job's settings stand for."""

from pathlib import Path

import torch

from srdd.checkpoint import read_config
from srdd.errors import UserError
from srdd.load import load_var
from srdd.metrics.classifier import ClassifierConfig
from srdd.train.classifier import ClassifierTask
from srdd.train.config import OptimConfig, TokenizerLossConfig, TransformerLossConfig
from srdd.train.loop import Task
from srdd.train.var.perceptual import Lpips
from srdd.train.var.tokenizer import TokenizerTask
from srdd.train.var.transformer import TransformerTask
from srdd.validation import from_dict
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.pipeline import load_tokenizer
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd.var.warm_start import WarmStart, warm_start
from srdd_platform.core.runs import model_dir, tokenizer_dir
from srdd_platform.train.job import Job
from srdd_platform.train.tokenizer_settings import checked_lpips


def build_task(job: Job) -> Task:
    """The task of a job, freshly initialised."""
    lpips = checked_lpips(job.lpips, job.settings)
    tokenizer, teacher = None, None
    if job.kind == "transformer":
        tokenizer = load_tokenizer(tokenizer_dir(Path(job.tokenizer)))
        teacher = load_var(job.init_from).transformer if _taught(job) else None
    return _task(job, lpips, tokenizer, teacher)


def blank_task(job: Job) -> Task:
    """The task of a job on the meta device: shapes without values. It reads no weights."""
    with torch.device("meta"):
        lpips = Lpips() if job.lpips else None
        tokenizer, teacher = None, None
        if job.kind == "transformer":
            directory = tokenizer_dir(Path(job.tokenizer))
            tokenizer = Tokenizer(read_config(directory, "tokenizer", TokenizerConfig))
        if job.kind == "transformer" and _taught(job):
            directory = model_dir(Path(job.init_from)) / "transformer"
            config = read_config(directory, "transformer", TransformerConfig)
            teacher = ScaleTransformer(config)
        return _task(job, lpips, tokenizer, teacher)


def _taught(job: Job) -> bool:
    return bool(job.init_from) and job.settings["loss"].get("teacher_kl", 0) > 0


def _task(
    job: Job, lpips: Lpips | None, tokenizer: Tokenizer | None, teacher: ScaleTransformer | None
) -> Task:
    settings = job.settings
    optim = from_dict(OptimConfig, settings["optim"], "optim")
    if job.kind == "tokenizer":
        model = from_dict(TokenizerConfig, settings["model"], "tokenizer")
        loss = from_dict(TokenizerLossConfig, settings["loss"], "loss")
        return TokenizerTask(model, loss, optim, lpips)
    if job.kind == "transformer":
        assert tokenizer is not None
        return TransformerTask(
            from_dict(TransformerConfig, settings["model"], "transformer"),
            from_dict(TransformerLossConfig, settings["loss"], "loss"),
            optim,
            tokenizer,
            init_gate=settings["init_gate"],
            teacher=teacher,
        )
    return ClassifierTask(from_dict(ClassifierConfig, settings["model"], "classifier"), optim)


def begin_from(task: Task, source: Path) -> WarmStart:
    """Give a transformer's task the weights of a pipeline or run directory.

    Raises:
        UserError: there is no pipeline, or its weights do not fit; the directory is named.
    """
    assert isinstance(task, TransformerTask)
    try:
        return warm_start(task.model, load_var(source).transformer)
    except UserError as error:
        raise UserError(f"--init-from {source}: {error}") from None
