"""The task that a job's settings stand for."""

from pathlib import Path

from srdd.classifier import ClassifierConfig
from srdd.config import TokenizerConfig, TransformerConfig
from srdd.errors import UserError
from srdd.fields import from_dict
from srdd.pipeline import load_pipeline, load_tokenizer
from srdd.train.classifier import ClassifierTask
from srdd.train.config import OptimConfig, TokenizerLossConfig, TransformerLossConfig
from srdd.train.loop import Task
from srdd.train.tokenizer import TokenizerTask
from srdd.train.transformer import TransformerTask
from srdd.train.warm_start import WarmStart, warm_start
from srdd_platform.jobs import Job
from srdd_platform.runs import tokenizer_dir
from srdd_platform.tokenizer_options import checked_lpips


def build_task(job: Job) -> Task:
    """The task of a job, freshly initialised."""
    settings = job.settings
    optim = from_dict(OptimConfig, settings["optim"], "optim")
    if job.kind == "tokenizer":
        model = from_dict(TokenizerConfig, settings["model"], "tokenizer")
        loss = from_dict(TokenizerLossConfig, settings["loss"], "loss")
        return TokenizerTask(model, loss, optim, checked_lpips(job.lpips, settings))
    if job.kind == "transformer":
        losses = from_dict(TransformerLossConfig, settings["loss"], "loss")
        taught = losses.teacher_kl > 0 and job.init_from
        return TransformerTask(
            from_dict(TransformerConfig, settings["model"], "transformer"),
            losses,
            optim,
            load_tokenizer(tokenizer_dir(Path(job.tokenizer))),
            init_gate=settings["init_gate"],
            teacher=load_pipeline(job.init_from).transformer if taught else None,
        )
    return ClassifierTask(from_dict(ClassifierConfig, settings["model"], "classifier"), optim)


def begin_from(task: Task, source: Path) -> WarmStart:
    """Give a transformer's task the weights of a pipeline or run directory.

    Raises:
        UserError: there is no pipeline, or its weights do not fit; the directory is named.
    """
    assert isinstance(task, TransformerTask)
    try:
        return warm_start(task.model, load_pipeline(source).transformer)
    except UserError as error:
        raise UserError(f"--init-from {source}: {error}") from None
