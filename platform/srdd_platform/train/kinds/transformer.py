"""The scale-wise transformer on the codes of a tokenizer: VAR and SDD."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from srdd.checkpoint import map_weights, read_config
from srdd.errors import UserError
from srdd.foreign import main_state
from srdd.load import load_var
from srdd.networks import name_network
from srdd.presets import var_size
from srdd.train.config import TransformerLossConfig
from srdd.train.task import Task
from srdd.train.var.transformer_task import TransformerTask
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.pipeline import load_tokenizer
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer
from srdd.var.warm_start import WarmStart, check_source, warm_start
from srdd.weight_files import read_weights
from srdd_platform.core.files import sha256_file
from srdd_platform.core.runs import model_dir, tokenizer_dir
from srdd_platform.data.code_places import code_settings, codes_dir
from srdd_platform.train.kind import Inputs, Kind, Request, Settings
from srdd_platform.train.options import TransformerOptions


def plan(request: Request) -> tuple[Settings, Inputs]:
    """The settings of a transformer for the data's classes and the tokenizer's codes.

    Raises:
        UserError: there is no finished tokenizer, or options do not fit it or each other.
    """
    options, preset, tokenizer = request.options, request.preset, request.tokenizer
    assert isinstance(options, TransformerOptions)
    assert tokenizer is not None
    views = code_settings(options, options.views)
    codes = codes_dir(
        request.store, tokenizer, views=options.views, flip=options.flip,
        skipped=request.skipped, place=options.codes, run=request.run,
    )  # fmt: skip
    frozen = load_tokenizer(tokenizer_dir(tokenizer))
    model = model_config(request, options, frozen.config)
    more: dict[str, Any] = {"init_gate": preset.init_gate, **views}
    if options.teacher_kl and not options.init_from:
        raise UserError("--teacher-kl needs a teacher: give --init-from")
    init_from = ""
    if options.init_from:
        _check_init(options.init_from, model, frozen)
        more["init"] = _weights_hash(options.init_from)
        init_from = str(options.init_from.resolve())
    more["tokenizer"] = sha256_file(tokenizer_dir(tokenizer) / "model.safetensors")
    settings = Settings(
        model=model,
        loss=options.apply_loss(preset.transformer_loss),
        optim=options.apply(preset.transformer_optim),
        more=more,
    )
    return settings, Inputs(
        tokenizer=str(tokenizer.resolve()), codes=str(codes.resolve()), init_from=init_from
    )


def model_config(
    request: Request, options: TransformerOptions, tokenizer: TokenizerConfig
) -> TransformerConfig:
    """The preset's transformer with the size, classes and codes asked for."""
    sized = request.preset.transformer
    if options.depth is not None:
        sized = var_size(sized, options.depth)
    classes = len(request.manifest.classes)
    unconditional = options.unconditional or sized.unconditional or request.manifest.unconditional
    return replace(
        sized, mask=request.mask or sized.mask, unconditional=unconditional,
        num_classes=1 if unconditional else classes,
        patch_nums=tokenizer.patch_nums, parent=tokenizer.parent,
        vocab_size=tokenizer.vocab_size, z_channels=tokenizer.z_channels,
        num_phi=tokenizer.num_phi,
    )  # fmt: skip


def build(settings: Settings, inputs: Inputs) -> TransformerTask:
    """The task, freshly initialised; a teacher has the weights that it begins with."""
    tokenizer = load_tokenizer(tokenizer_dir(Path(inputs.tokenizer)))
    teacher = _load(inputs.init_from) if _taught(settings, inputs) else None
    return _task(settings, tokenizer, teacher)


def blank(settings: Settings, inputs: Inputs) -> TransformerTask:
    """The task with a tokenizer and a teacher of the configurations on disk."""
    directory, teacher = tokenizer_dir(Path(inputs.tokenizer)), None
    tokenizer = Tokenizer(read_config(directory, "tokenizer", TokenizerConfig))
    if _taught(settings, inputs):
        directory = model_dir(Path(inputs.init_from)) / "transformer"
        teacher = ScaleTransformer(read_config(directory, "transformer", TransformerConfig))
    return _task(settings, tokenizer, teacher)


def _load(source: str | Path) -> ScaleTransformer:
    return load_var(source).transformer


def _taught(settings: Settings, inputs: Inputs) -> bool:
    return bool(inputs.init_from) and settings.loss.teacher_kl > 0


def _task(
    settings: Settings, tokenizer: Tokenizer, teacher: ScaleTransformer | None
) -> TransformerTask:
    gate = settings.more["init_gate"]
    return TransformerTask(
        settings.model, settings.loss, settings.optim, tokenizer, init_gate=gate, teacher=teacher
    )


def begin(task: Task, source: Path) -> WarmStart:
    """Give a task the weights of a pipeline or run directory.

    Raises:
        UserError: there is no pipeline, or its weights do not fit; the directory is named.
    """
    assert isinstance(task, TransformerTask)
    try:
        return warm_start(task.model, _load(source))
    except UserError as error:
        raise UserError(f"--init-from {source}: {error}") from None


def _check_init(source: Path, config: TransformerConfig, tokenizer: Tokenizer) -> None:
    """Refuse what ``--init-from`` cannot begin with, before any work; few values are read.

    Raises:
        UserError: there is no pipeline, or its transformer does not fit.
    """
    if source.is_file():
        loaded = read_weights(source, "--init-from takes a pipeline or run directory")
        network = name_network(main_state(loaded)) or "a file of weights"
        raise UserError(
            f"--init-from {source}: this is {network}, not a pipeline or run directory; "
            "srdd convert makes one of VAR's, MVAR's and HMAR's files"
        )
    directory = _weights(source).parent
    try:
        other = read_config(directory, "transformer", TransformerConfig)
        with torch.device("meta"):
            model = ScaleTransformer(other)
        check_source(config, tokenizer.state_dict(), other, map_weights(model, directory))
    except UserError as error:
        raise UserError(f"--init-from {source}: {error}") from None


def _weights_hash(source: Path) -> str:
    """Names the transformer's weights in a pipeline or run directory, wherever that lies.

    Raises:
        UserError: there are none.
    """
    return sha256_file(_weights(source))


def _weights(source: Path) -> Path:
    """The file of the transformer's weights."""
    path = model_dir(source) / "transformer" / "model.safetensors"
    if not path.is_file():
        raise UserError(f"--init-from {source}: neither a pipeline nor a finished transformer run")
    return path


TRANSFORMER = Kind(
    name="transformer",
    model=TransformerConfig,
    loss=TransformerLossConfig,
    options=TransformerOptions,
    reads="codes",
    plan=plan,
    build=build,
    blank=blank,
    begin=begin,
    sharded=True,
    recomputes=True,
)
