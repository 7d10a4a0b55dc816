"""Model directories: ``config.json`` and ``model.safetensors``, loaded strictly."""

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.foreign import check_tensors
from srdd.json_files import read_json
from srdd.validation import from_dict, to_dict
from srdd.weight_files import read_weights

Config = TypeVar("Config")
M = TypeVar("M", bound=nn.Module)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: as the system says; safetensors' own error hides its number.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        code = int(found.group(1))
        raise OSError(code, os.strerror(code), str(path)) from error


def save_model(directory: Path, kind: str, config: Any, tensors: dict[str, Tensor]) -> None:
    """Write a model directory; it holds no path and no time."""
    directory.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_tensors(directory / "model.safetensors", contiguous)
    text = json.dumps({"kind": kind, **to_dict(config)}, indent=1)
    (directory / "config.json").write_text(text + "\n")


def read_config(directory: Path, kind: str, config: type[Config]) -> Config:
    """Read and check a model directory's configuration.

    Raises:
        UserError: there is none, it is of another kind, or a field is wrong.
    """
    path = directory / "config.json"
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{directory} is no {kind} directory: it has no config.json") from None
    except NotADirectoryError:
        raise UserError(f"{directory} is a file: give a {kind}'s directory") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    found = values.pop("kind", None) if isinstance(values, dict) else None
    if found != kind:
        raise UserError(f"{directory} holds a {found or 'different thing'}, not a {kind}")
    return from_dict(config, values, where=str(path))


def load_weights(model: M, directory: Path) -> M:
    """Load ``model.safetensors`` strictly into ``model``.

    Raises:
        UserError: the file is missing or damaged, or its keys or shapes do not fit.
    """
    model.load_state_dict(map_weights(model, directory), assign=False)
    return model


def map_weights(model: nn.Module, directory: Path) -> dict[str, Tensor]:
    """The tensors of ``model.safetensors``, found to fit; their values are read when used.

    Args:
        model: whose names and shapes are wanted; the meta device will do.
        directory: a model directory.

    Raises:
        UserError: as :func:`load_weights`.
    """
    path = directory / "model.safetensors"
    tensors = read_weights(path, "the weights that belong to config.json are wanted")
    try:
        check_tensors(model.state_dict(), tensors)
    except UserError as error:
        raise UserError(f"{path} does not fit its config.json: {error}") from None
    return tensors


def build_empty(build: type[M], config: Any) -> M:
    """Construct a model without spending time on initial weights that loading replaces."""
    with torch.device("meta"):
        model = build(config)
    return model.to_empty(device="cpu")
