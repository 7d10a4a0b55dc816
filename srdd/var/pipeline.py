"""A pipeline: tokenizer, transformer, sampler settings and class names, in one directory.

::

    tokenizer/config.json, model.safetensors
    transformer/config.json, model.safetensors
    sampler.json    a SamplerConfig
    classes.json    the class names, in label order
"""

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from srdd.checkpoint import build_empty, load_weights, read_config, save_model
from srdd.class_names import find, find_all, readable
from srdd.errors import UserError
from srdd.json_files import read_json
from srdd.validation import from_dict, to_dict
from srdd.var.config import SamplerConfig, TokenizerConfig, TransformerConfig
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Everything that draws images."""

    tokenizer: Tokenizer
    transformer: ScaleTransformer
    sampler: SamplerConfig
    class_names: tuple[str, ...]  # in label order; brought to their one form when it is made

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(readable, self.class_names)))
        check_match(self.tokenizer, self.transformer)
        self.tokenizer.prepare()
        if len(self.class_names) != self.transformer.config.num_classes:
            raise UserError(
                f"{len(self.class_names)} class names for "
                f"{self.transformer.config.num_classes} classes"
            )

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Pipeline":
        """Move to a device, transformer and decoder to a dtype; returns self.

        Linear head, codebook and the sums of the map stay in float32, and so does the encoder;
        on CUDA torch may take TF32 for float32 convolutions (``torch.backends.cudnn``).
        """
        self.tokenizer.to(device)
        self.transformer.to(device)
        if dtype is not None:
            self.tokenizer.decoder.to(dtype)
            self.tokenizer.post_quant_conv.to(dtype)
            for name, parameter in self.transformer.named_parameters():
                if not name.startswith(("quantizer.", "head.")):
                    parameter.data = parameter.data.to(dtype)
        return self

    def label(self, text: str) -> int:
        """The class that a name or an index means; see :mod:`srdd.class_names` for the rules.

        Raises:
            UserError: there is no such class, or several have this name.
        """
        return find(self.class_names, text)

    def labels(self, text: str) -> list[int]:
        """The classes that a comma-separated list means, by the same rules.

        Raises:
            UserError: a part of the list means no class, or several.
        """
        return find_all(self.class_names, text)


def check_match(tokenizer: Tokenizer, transformer: ScaleTransformer) -> None:
    """Refuse a transformer whose frozen codebook and phi are not the tokenizer's.

    Raises:
        UserError: the two copies differ.
    """
    own, frozen = tokenizer.quantizer.state_dict(), transformer.quantizer.state_dict()
    same = tokenizer.schedule == transformer.schedule and own.keys() == frozen.keys()
    if not same or not all(torch.equal(own[name].float(), frozen[name].float()) for name in own):
        raise UserError("the transformer was trained for another tokenizer: codebook or phi differ")


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write a tokenizer's model directory."""
    save_model(directory, "tokenizer", tokenizer.config, tokenizer.state_dict())


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load a tokenizer's model directory, in eval mode.

    Raises:
        UserError: the directory is missing, damaged or of another kind.
    """
    config = read_config(directory, "tokenizer", TokenizerConfig)
    tokenizer = load_weights(build_empty(Tokenizer, config), directory)
    return tokenizer.eval().prepare().requires_grad_(False)


def save_pipeline(pipeline: Pipeline, directory: Path) -> None:
    """Write a pipeline directory."""
    save_tokenizer(pipeline.tokenizer, directory / "tokenizer")
    model = pipeline.transformer
    save_model(directory / "transformer", "transformer", model.config, model.state_dict())
    write = {"sampler.json": to_dict(pipeline.sampler), "classes.json": list(pipeline.class_names)}
    for name, value in write.items():
        (directory / name).write_text(json.dumps(value, indent=1) + "\n")


def load_pipeline(source: str | Path) -> Pipeline:
    """Load a pipeline, in eval mode, on the CPU.

    Args:
        source: a pipeline directory, a run directory that holds one in ``model/``, or the id of
            a Hugging Face repository in this format ("owner/name").

    Raises:
        UserError: it is missing, damaged, of another kind, or its parts do not fit together.
    """
    directory = _local(source)
    config = read_config(directory / "transformer", "transformer", TransformerConfig)
    model = load_weights(build_empty(ScaleTransformer, config), directory / "transformer")
    return Pipeline(
        tokenizer=load_tokenizer(directory / "tokenizer"),
        transformer=model.eval().requires_grad_(False),
        sampler=from_dict(SamplerConfig, _read(directory / "sampler.json"), where="sampler.json"),
        class_names=_class_names(directory / "classes.json"),
    )


def is_pipeline(directory: Path) -> bool:
    """Whether a directory looks like a pipeline."""
    return (directory / "transformer" / "config.json").is_file()


def _local(source: str | Path) -> Path:
    """The pipeline directory that ``source`` means, fetched from the hub if it is an id."""
    path = Path(source)
    for candidate in (path, path / "model"):
        if is_pipeline(candidate):
            return candidate
    if path.exists():
        raise UserError(f"{path} is no pipeline directory: it has no transformer/config.json")
    if path.parent.is_dir() and str(path.parent) != ".":
        raise UserError(f"{path} does not exist")
    parts = str(source).split("/")
    if len(parts) != 2 or not all(parts) or str(source).startswith((".", "~")):
        raise UserError(f"{path} does not exist")
    try:  # only here, so that a machine with torch and safetensors alone can do the rest
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise UserError(f"{path} does not exist here, and huggingface_hub is missing") from None
    network_error: Any = HfHubHTTPError.__bases__[0]  # of httpx or httpx2, by the hub's version
    try:
        return Path(snapshot_download(str(source)))
    except (network_error, HFValidationError, OSError) as error:
        if isinstance(error, OSError) and (error.filename or error.errno in _DISK_FULL):
            raise  # of the disk that keeps what is fetched
        raise UserError(f"{path} does not exist here, and {_hub_says(error)}") from None


def _hub_says(error: Exception) -> str:
    """Why the hub gave nothing, and what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if isinstance(error, HFValidationError):
        return "it is not the id of a repository on the hub: give OWNER/NAME"
    if isinstance(error, GatedRepoError):
        return "the hub asks for permission: accept its terms there, then run hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository (a private one needs hf auth login)"
    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached from here: check the network and HF_HUB_OFFLINE"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status:
        return f"the hub answers {status}: try again later"
    return "the hub cannot be reached from here: check the network and HTTPS_PROXY"


def _class_names(path: Path) -> tuple[str, ...]:
    names = _read(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} must be a list of class names")
    return tuple(names)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the pipeline directory is incomplete") from None
