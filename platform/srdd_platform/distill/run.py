"""``srdd train distill``: a trained model over fewer scales, stage by stage.

::

    RUN/config.json       what decides the result
    RUN/tokenizer_1/      the parent's tokenizer over the first stage's scales, and its codes
    RUN/stage_1/          a transformer's run, begun with the weights of the stage before
    RUN/tokenizer_2/ ...
    RUN/model/            the pipeline of the last stage, with the parent's sampler settings
    RUN/stages.json, .md  the table (:mod:`srdd_platform.distill.table`)

Each stage's training is an ordinary one, so all that holds there holds here: the same command goes
on in the stage where it stopped, at its last checkpoint.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from srdd.compiling import check_machine
from srdd.errors import UserError
from srdd.load import find_pipeline, load_var
from srdd.presets import Preset
from srdd.validation import to_dict
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline, save_pipeline, save_tokenizer
from srdd.var.prune import check_distillation, prune_tokenizer
from srdd_platform.core.files import atomic_path
from srdd_platform.core.location import parse_location
from srdd_platform.core.parsing import integers
from srdd_platform.core.ray_session import Session, session
from srdd_platform.core.runs import open_run
from srdd_platform.data.codes import encode
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.store import open_store
from srdd_platform.distill.table import row_keys, run_rows, table_specs, write_table
from srdd_platform.evaluation.checks import check_data
from srdd_platform.evaluation.extractors import check_classes, load_extractor
from srdd_platform.evaluation.protocol import (
    MIN_IMAGES,
    EvaluationConfig,
    begun_under,
    weights_digest,
)
from srdd_platform.evaluation.runner import missing
from srdd_platform.train.dry_run import dry_run
from srdd_platform.train.extend import is_finished
from srdd_platform.train.job import Job, make_job
from srdd_platform.train.launcher import train
from srdd_platform.train.options import TransformerOptions
from srdd_platform.train.progress import Display, no_display

STAGE_SHARE = 0.1  # of the preset's steps: the paper does not say; a tenth is our choice
_OWN = {
    "max_steps": "--max-steps: a stage's length is --stage-steps",
    "extend_to": "--extend-to: a stage has --stage-steps and no more",
    "init_from": "--init-from: a stage begins with the weights of the one before",
    "unconditional": "--unconditional: classes are the model's",
    "depth": "--depth: sizes are the model's",
}  # options of a transformer's training that a stage settles itself

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """One distillation: from which model, on which data, to which scales, and how it is judged."""

    model: Path
    data: str  # shard directory, or its URI
    out: Path
    stages: tuple[tuple[int, ...], ...]
    steps: int  # updates of each stage
    options: TransformerOptions
    evaluation: EvaluationConfig
    cfg: float | None = None  # guidance of the table's samples; None: the model's own

    def __post_init__(self) -> None:
        for name, why in _OWN.items():
            if getattr(self.options, name):
                raise UserError(f"distillation takes no {why}")
        if self.steps < 1:
            raise UserError(f"--stage-steps must be positive, got {self.steps}")
        evaluation = self.evaluation
        if evaluation.num < MIN_IMAGES:
            raise UserError(f"--num must be at least {MIN_IMAGES}, got {evaluation.num}")
        if evaluation.weights and not Path(evaluation.weights).exists():
            raise UserError(f"--weights {evaluation.weights} does not exist")
        if evaluation.extractor == "inception" and not evaluation.weights:
            raise UserError("--extractor inception needs --weights FILE")

    def run(self, number: int) -> Path:
        """The run directory of a stage's transformer; stages count from 1."""
        return self.out / f"stage_{number}"

    def tokenizer(self, number: int) -> Path:
        """The directory of a stage's tokenizer."""
        return self.out / f"tokenizer_{number}"


def parse_stages(text: str) -> tuple[tuple[int, ...], ...]:
    """Stages of "1,3,4/1,4".

    Raises:
        UserError: something else stands there.
    """
    return tuple(integers(part, "--stages") for part in text.split("/"))


def stage_steps(preset: Preset) -> int:
    """How long a stage is where nothing else is said."""
    return max(1, round(STAGE_SHARE * preset.transformer_optim.steps))


def distill(
    job: Distillation, preset: Preset, address: str | None, display: Display = no_display
) -> dict[str, Any]:
    """Train all stages, write the last one's pipeline, and compare the stages with their parent.

    Args:
        job: what to do.
        preset: whose transformer's recipe is taken; the model's sizes are the parent's.
        address: a Ray cluster, as :func:`session` takes it.
        display: shows how far the trainings are.

    Returns:
        The table, as ``stages.json`` holds it.

    Raises:
        UserError: model, data, stages and options do not fit together, or as :func:`train`.
    """
    job, parent, sized = _checked(job, preset)
    protocol = begun_under(job.out)
    job = replace(job, evaluation=replace(job.evaluation, protocol=protocol))
    finished = (job.out / "model").is_dir()
    if job.evaluation.weights and not finished:  # or an hour passes before they are looked at
        load_extractor(job.evaluation.extractor, Path(job.evaluation.weights))
    if address is None and not finished:
        optim = job.options.apply(sized.transformer_optim)
        check_machine(job.options.device, compiled=optim.compile)
    with ExitStack() as stack:
        stack.enter_context(open_run(job.out, "train distill", *_configuration(job, sized)))
        connect = cache(lambda: _connect(stack, address))
        for number in range(1, len(job.stages) + 1):
            logger.info(_heading(job, number))
            stage = _train_stage(job, sized, number, connect, display)
        if not finished:
            _write_model(job, parent)
        return _measured(job, parent, stage, connect)


def _heading(job: Distillation, number: int) -> str:
    sides = ",".join(map(str, job.stages[number - 1]))
    return f"Stage {number} of {len(job.stages)}: {sides}"


def dry_run_stages(job: Distillation, preset: Preset) -> Iterator[str]:
    """What each stage's training would do, begun with the parent's weights; it writes nothing.

    Yields:
        The lines of one stage.

    Raises:
        UserError: as :func:`distill`.
    """
    job, parent, sized = _checked(job, preset)
    for number, sides in enumerate(job.stages, 1):
        with TemporaryDirectory() as directory:
            save_tokenizer(prune_tokenizer(parent.tokenizer, sides), Path(directory))
            stage = _stage_job(job, sized, number, Path(directory), job.model)
            yield f"{_heading(job, number)}\n{dry_run(stage)}"


def _checked(job: Distillation, preset: Preset) -> tuple[Distillation, Pipeline, Preset]:
    """The job with its pipeline's directory, the parent, and the preset with the parent's sizes."""
    directory = find_pipeline(job.model)
    if directory is None:
        raise UserError(f"--model {job.model}: neither a pipeline nor a finished transformer run")
    job = replace(job, model=directory)
    parent = load_var(job.model)
    manifest = _manifest(job)
    check_data(parent.card, job.model, manifest, job.data)
    if job.evaluation.weights and job.evaluation.extractor == "classifier":
        check_classes(len(manifest.classes), str(job.data))
    model = check_distillation(parent, job.stages, taught=bool(job.options.teacher_kl))
    parent.check_settings(_sampler(job, parent))
    return job, parent, replace(preset, tokenizer=parent.tokenizer.config, transformer=model)


def _manifest(job: Distillation) -> Manifest:
    options = job.options
    return open_store(job.data, options.cache, options.cache_gb).manifest


def _sampler(job: Distillation, parent: Pipeline) -> SamplerConfig:
    """The settings of the table's samples: all rows visit all scales that they have."""
    config = replace(parent.sampler, patch_nums=None)
    return config if job.cfg is None else replace(config, cfg=job.cfg)


def _configuration(job: Distillation, preset: Preset) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides the result, and what does not. A stage's run holds its own settings as well."""
    options = replace(job.options, max_steps=job.steps)
    settings = {
        "parent": weights_digest(job.model),
        "stages": job.stages,
        "loss": to_dict(options.apply_loss(preset.transformer_loss)),
        "optim": to_dict(options.apply(preset.transformer_optim)),
        "data": _manifest(job).fingerprint,
    }
    runtime = {"model": str(job.model.resolve()), **to_dict(job.evaluation), "cfg": job.cfg}
    return settings, runtime


def _connect(stack: ExitStack, address: str | None) -> Session:
    """Ray, started or joined when a stage first needs it."""
    cluster = stack.enter_context(session(address))
    if cluster.dashboard:
        logger.info(cluster.dashboard)
    return cluster


def _stage_job(
    job: Distillation, preset: Preset, number: int, tokenizer: Path, source: Path
) -> Job:
    """The training of a stage: on codes of ``tokenizer``, begun with the weights of ``source``."""
    elsewhere = job.options.settled_checkpoints
    options = replace(
        job.options, max_steps=job.steps, init_from=source,
        checkpoints=str(parse_location(elsewhere) / f"stage_{number}") if elsewhere else None,
    )  # fmt: skip
    run = job.run(number)
    return make_job("transformer", preset, job.data, run, options, tokenizer=tokenizer)


def _train_stage(
    job: Distillation,
    preset: Preset,
    number: int,
    connect: Callable[[], Session],
    display: Display,
) -> Job:
    """Train one stage; a finished one is compared with its settings and left alone."""
    tokenizer, options = job.tokenizer(number), job.options
    if not tokenizer.exists():
        pruned = prune_tokenizer(load_var(job.model).tokenizer, job.stages[number - 1])
        with atomic_path(tokenizer) as directory:
            save_tokenizer(pruned, directory)
    source = job.run(number - 1) if number > 1 else job.model
    training = _stage_job(job, preset, number, tokenizer, source)
    if is_finished(job.run(number)):
        train([training], None)
        return training
    cluster = connect()
    encode(
        job.data, tokenizer, views=options.views, flip=options.flip, reading=options,
        device=options.device, out=Path(training.inputs.codes),
    )  # fmt: skip
    train([training], cluster, display)
    return training


def _write_model(job: Distillation, parent: Pipeline) -> None:
    """The last stage's weights with the parent's sampler settings and names of classes."""
    last = load_var(job.run(len(job.stages)))
    sampler = replace(parent.sampler, patch_nums=None)
    pipeline = replace(last, sampler=sampler, class_names=parent.class_names)
    with atomic_path(job.out / "model") as directory:
        save_pipeline(pipeline, directory)


def _measured(
    job: Distillation, parent: Pipeline, stage: Job, connect: Callable[[], Session]
) -> dict[str, Any]:
    """The table, with what is not measured yet; any stage's job reads the data."""
    config = _sampler(job, parent)
    runs = [job.run(number) for number in range(1, len(job.stages) + 1)]
    specs = table_specs(job.model, job.stages, runs, job.steps)
    keys = row_keys(specs, config, job.evaluation, stage)
    wanted = missing(job.out, list(zip(specs, keys, strict=True)))
    if wanted:
        gpus = 1 if job.evaluation.device == "cuda" else 0
        connect().require(cpus=job.options.threads, gpus=gpus)
        logger.info("Measuring %d models", len(wanted))
        run_rows(job.out, wanted, config, job.evaluation, stage)
    return write_table(job.out, keys, config, job.evaluation)
