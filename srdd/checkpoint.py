"""Model directories: ``config.json`` and ``model.safetensors``, loaded strictly."""

import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.fields import from_dict, to_dict

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
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{directory} is no {kind} directory: it has no config.json") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    found = values.pop("kind", None) if isinstance(values, dict) else None
    if found != kind:
        raise UserError(f"{directory} holds a {found or 'different thing'}, not a {kind}")
    return from_dict(config, values, where=str(path))


def load_weights(model: M, directory: Path) -> M:
    """Load ``model.safetensors`` strictly into ``model``.

    Raises:
        UserError: the file is missing or damaged, or its keys or shapes do not fit.
    """
    path = directory / "model.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from None
    expected = model.state_dict()
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unknown:
        raise UserError(f"{path} does not fit its config: missing {missing}, unknown {unknown}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} has shape {list(tensor.shape)}, "
                f"the config says {list(expected[name].shape)}"
            )
    model.load_state_dict(tensors, assign=False)
    return model


def build_empty(build: type[M], config: Any) -> M:
    """Construct a model without spending time on initial weights that loading replaces."""
    with torch.device("meta"):
        model = build(config)
    return model.to_empty(device="cpu")
