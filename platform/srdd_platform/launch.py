"""Start trainings from presets, watch them, and write what they finished."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from srdd.checkpoint import save_model
from srdd.classifier import ClassifierConfig
from srdd.config import SamplerConfig
from srdd.errors import UserError
from srdd.fields import to_dict
from srdd.masks import Mask
from srdd.pipeline import Pipeline, load_tokenizer, save_pipeline, save_tokenizer
from srdd.presets import Preset
from srdd.train.classifier import ClassifierTask
from srdd.train.ema import finished_weights
from srdd.train.tokenizer import TokenizerTask
from srdd.train.transformer import TransformerTask
from srdd_platform.codes import codes_dir
from srdd_platform.data import Manifest
from srdd_platform.extend import extended, is_finished, mark_finished
from srdd_platform.files import atomic_path, sha256_file
from srdd_platform.jobs import Job, Kind, begin_from, build_task, transformer_settings
from srdd_platform.options import Options, TransformerOptions
from srdd_platform.ray_session import Session
from srdd_platform.runs import model_dir, note, open_run, read_metrics
from srdd_platform.tokenizer_options import tokenizer_settings
from srdd_platform.training import failure, read_state, run_training

POLL_S = 0.5
UNCONDITIONAL = "image"  # the one class of an unconditional model


def make_job(
    kind: Kind,
    preset: Preset,
    data: Path,
    out: Path,
    options: Options,
    *,
    tokenizer: Path | None = None,
    mask: Mask = "markov",
) -> Job:
    """The job that trains one model of a preset.

    Raises:
        UserError: data, tokenizer and preset do not fit together.
    """
    manifest = Manifest.load(data)
    if manifest.resolution != preset.tokenizer.resolution:
        raise UserError(
            f"the preset takes {preset.tokenizer.resolution} px images, {data} holds "
            f"{manifest.resolution} px ones: prepare them with --resolution "
            f"{preset.tokenizer.resolution}"
        )
    num_classes = len(manifest.classes)
    settings: dict[str, Any]
    codes = ""
    more: dict[str, Any] = {}
    if kind == "tokenizer":
        settings, more = tokenizer_settings(preset, options)
    elif kind == "classifier":
        model = ClassifierConfig(num_classes=num_classes, resolution=manifest.resolution)
        settings = {
            "model": to_dict(model),
            "optim": to_dict(options.apply(preset.classifier_optim)),
        }
    else:
        assert tokenizer is not None
        own = options if isinstance(options, TransformerOptions) else TransformerOptions()
        codes = str(codes_dir(data, tokenizer).resolve())
        frozen = load_tokenizer(model_dir(tokenizer)).config
        unconditional = own.unconditional or manifest.unconditional
        model_config = replace(
            preset.transformer, mask=mask, unconditional=unconditional,
            num_classes=1 if unconditional else num_classes,
            patch_nums=frozen.patch_nums, vocab_size=frozen.vocab_size,
            z_channels=frozen.z_channels, num_phi=frozen.num_phi,
        )  # fmt: skip
        settings = transformer_settings(
            model_config,
            own.apply_loss(preset.transformer_loss),
            options.apply(preset.transformer_optim),
            preset.init_gate,
        )
        if own.init_from:
            settings["init"] = weights_hash(own.init_from)
            more["init_from"] = str(own.init_from.resolve())
        settings["tokenizer"] = sha256_file(model_dir(tokenizer) / "model.safetensors")
    settings["data"] = manifest.fingerprint
    return Job(
        kind=kind,
        run=str(out.resolve()),
        data=str(data.resolve()),
        settings=settings,
        tokenizer=str(tokenizer.resolve()) if tokenizer else "",
        codes=codes,
        workers=options.workers,
        device=options.device,
        threads=options.threads,
        checkpoint_every=options.checkpoint_every or preset.checkpoint_every,
        validate_every=options.validate_every,
        extend_to=options.extend_to,
        **more,
    )


def weights_hash(source: Path) -> str:
    """Names the transformer's weights in a pipeline or run directory, wherever that lies.

    Raises:
        UserError: there are none.
    """
    path = model_dir(source) / "transformer" / "model.safetensors"
    if not path.is_file():
        raise UserError(f"--init-from {source}: neither a pipeline nor a finished transformer run")
    return sha256_file(path)


def title(job: Job) -> str:
    """What a person calls a job: "tokenizer", "transformer markov"."""
    name = Path(job.run).name
    return job.kind if name == job.kind else f"{job.kind} {name}"


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
            runtime = {
                "data": job.data, "tokenizer": job.tokenizer, "workers": job.workers,
                "device": job.device, "threads": job.threads,
                "checkpoint_every": job.checkpoint_every, "validate_every": job.validate_every,
                "init_from": job.init_from,
            }  # fmt: skip
            lists = {"lpips": list(job.lpips), "extractor": list(job.extractor)}
            runtime |= {name: value for name, value in lists.items() if value}
            held = open_run(Path(job.run), f"train {job.kind}", job.settings, runtime)
            stack.enter_context(held)
        jobs = [extended(job) for job in jobs]
        todo = [job for job in jobs if not is_finished(Path(job.run))]
        if not todo:
            return
        assert session is not None, "a training needs Ray"
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
    with _bars(jobs, console) as update:
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
    why = failure(job)
    if why:
        return UserError(why)
    cause = error.cause if isinstance(error.cause, UserError) else None
    failures = getattr(error.cause, "worker_failures", {})
    for inner in failures.values():
        if isinstance(inner, OSError) or "UserError" in type(inner).__name__:
            return UserError(f"{job.run}: {inner}")
    return cause or error


@contextmanager
def _bars(jobs: Sequence[Job], console: Console) -> Iterator[Any]:
    """A progress bar a job, fed from its metrics; plain lines where there is no terminal."""
    progress = Progress(
        TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    ids = [progress.add_task(title(job), total=job.steps, note="") for job in jobs]
    shown = [0 for _ in jobs]
    started = time.monotonic()

    def update() -> None:
        for i, job in enumerate(jobs):
            lines = read_metrics(Path(job.run))
            if not lines:
                continue
            last = lines[-1]
            step = int(last["step"])
            note = f"loss {last['loss']:.3f}"
            progress.update(ids[i], completed=step, note=note)
            if progress.disable and step >= shown[i] + max(1, job.steps // 5):
                shown[i] = step
                seconds = time.monotonic() - started
                console.print(f"  {title(job)}: step {step}/{job.steps}, {note}, {seconds:.0f} s")

    with progress:
        yield update
        update()


def finish(job: Job, checkpoint: Path) -> None:
    """Write ``model/`` from the last checkpoint: a model or pipeline directory, whole or absent."""
    state = read_state(checkpoint, job)
    if int(state["step"]) != job.steps:
        raise UserError(failure(job) or f"{job.run} stopped at step {state['step']}")
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
            tokenizer = load_tokenizer(model_dir(Path(job.tokenizer)))
            names = Manifest.load(Path(job.data)).classes
            if task.model.config.unconditional:
                names = (UNCONDITIONAL,)
            save_pipeline(Pipeline(tokenizer, task.model, SamplerConfig(), names), directory)
    mark_finished(Path(job.run))
