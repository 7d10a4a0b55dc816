"""What a training is, as a value: its settings, its files, and the task they stand for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from srdd.classifier import ClassifierConfig
from srdd.config import TokenizerConfig, TransformerConfig
from srdd.errors import UserError
from srdd.fields import from_dict, to_dict
from srdd.pipeline import load_pipeline, load_tokenizer
from srdd.train.classifier import ClassifierTask
from srdd.train.config import OptimConfig, TokenizerLossConfig, TransformerLossConfig
from srdd.train.loop import Task
from srdd.train.tokenizer import TokenizerTask
from srdd.train.transformer import TransformerTask
from srdd.train.warm_start import WarmStart, warm_start
from srdd_platform.files import digest
from srdd_platform.runs import model_dir
from srdd_platform.tokenizer_options import checked_lpips

Kind = Literal["tokenizer", "transformer", "classifier"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training. ``settings`` decide the result, the rest does not."""

    kind: Kind
    run: str  # run directory
    data: str  # shard directory
    settings: dict[str, Any]  # model, loss, optim (and more by kind), as JSON
    tokenizer: str = ""  # run or model directory, for transformers
    codes: str = ""  # code shards, for transformers
    lpips: tuple[str, ...] = ()  # files with its weights, for tokenizers
    extractor: tuple[str, ...] = ()  # name and weights: of the features behind a tokenizer's rFID
    init_from: str = ""  # pipeline or run directory whose weights a transformer begins with
    workers: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # of a CPU worker
    checkpoint_every: int = 50
    log_every: int = 10
    validate_every: int = 0  # steps; 0: at the end alone
    extend_to: int = 0  # steps in all, where they are more than the settings'

    @property
    def steps(self) -> int:
        """Optimizer updates in all."""
        return max(int(self.settings["optim"]["steps"]), self.extend_to)

    @property
    def config_hash(self) -> str:
        """Names the settings; a checkpoint carries it."""
        return digest({"kind": self.kind, **self.settings})


def build_task(job: Job) -> Task:
    """The task of a job, freshly initialised."""
    settings = job.settings
    optim = from_dict(OptimConfig, settings["optim"], "optim")
    if job.kind == "tokenizer":
        model = from_dict(TokenizerConfig, settings["model"], "tokenizer")
        loss = from_dict(TokenizerLossConfig, settings["loss"], "loss")
        return TokenizerTask(model, loss, optim, checked_lpips(job.lpips, settings))
    if job.kind == "transformer":
        return TransformerTask(
            from_dict(TransformerConfig, settings["model"], "transformer"),
            from_dict(TransformerLossConfig, settings["loss"], "loss"),
            optim,
            load_tokenizer(model_dir(Path(job.tokenizer))),
            init_gate=settings["init_gate"],
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


def transformer_settings(
    model: TransformerConfig, loss: TransformerLossConfig, optim: OptimConfig, init_gate: float
) -> dict[str, Any]:
    """The settings of a transformer's job."""
    return {
        "model": to_dict(model),
        "loss": to_dict(loss),
        "optim": to_dict(optim),
        "init_gate": init_gate,
    }
