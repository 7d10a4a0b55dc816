"""Weights from elsewhere, read without running any code that they may carry."""

import argparse
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from srdd.errors import UserError

# What training checkpoints hold beside tensors. Each only stores what it is given.
_SCALAR: Any = np.float64(0).__reduce__()[0]  # numpy's constructor of scalars
_SAFE: list[Any] = [
    argparse.Namespace,
    *((pathlib.PosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLefd"),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
]
_ZIP, _LFS = b"PK\x03\x04", b"version https://git-lfs"


def read_foreign(path: Path) -> dict[str, Any]:
    """Read a ``.safetensors`` file, or what ``torch.save`` wrote (any other name).

    A pickle goes through PyTorch's restricted unpickler, which builds tensors, plain values and
    the few types of ``_SAFE``, and calls nothing else. Large files are mapped, not copied.

    Raises:
        UserError: the file is missing, damaged or no checkpoint, or needs another global, which
            is named.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if head == _LFS:
        raise UserError(f"{path} is a Git LFS pointer: fetch the file it stands for (git lfs pull)")
    if not head:
        raise UserError(f"{path} is empty")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path, head)
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    return dict(loaded)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from None


def _mappable(path: Path, head: bytes) -> bool:
    """Whether tensors can be mapped: not in PyTorch's older format, nor where they are packed."""
    if not head.startswith(_ZIP):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())


def _unpickle(path: Path, head: bytes) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE):
            warnings.simplefilter("ignore")
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=_mappable(path, head)
            )
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle may end in any of them
        text = str(error)
        found = re.search(r"GLOBAL ([\w.]+)", text)
        if found is not None:
            raise UserError(
                f"{path} needs {found.group(1)} to be unpickled, which could run code: refused. "
                "Save its tensors alone, or as safetensors"
            ) from None
        if "TorchScript" in text:
            raise UserError(f"{path} is a TorchScript program, not a state dict") from None
        raise UserError(
            f"{path} is damaged, cut short or no PyTorch checkpoint ({type(error).__name__})"
        ) from None


def find_state(loaded: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """The state dict inside a checkpoint: one that a trainer saved by name, or the whole file.

    Args:
        loaded: what :func:`read_foreign` returned.
        names: the keys under which trainers keep the model, best first.

    Returns:
        The name found ("" for the whole file), and the tensors by name.
    """
    trainer = loaded.get("trainer")
    for level in (loaded, trainer if isinstance(trainer, Mapping) else {}):
        for name in names:
            found = level.get(name)
            if isinstance(found, Mapping) and all(isinstance(key, str) for key in found):
                return name, found
    return "", loaded


def is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor whose values are there."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as float32, none sharing memory with another, as safetensors needs them.

    Those that are float32 and alone already are not copied.

    Raises:
        UserError: one is not floating point, not finite, or larger than its stored values.
    """
    seen: set[int] = set()
    result = {}
    for name, given in tensors.items():
        tensor = given.detach()
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise UserError(f"{name} is {tensor.dtype}, {tensor.layout}, not dense floats")
        if tensor.is_meta:  # shapes alone
            result[name] = tensor
            continue
        storage = tensor.untyped_storage()
        size = tensor.numel() * tensor.element_size()
        if size > storage.nbytes():
            raise UserError(f"{name} claims {size} bytes and stores {storage.nbytes()}")
        if storage.data_ptr() in seen or storage.nbytes() > size:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        result[name] = tensor.float().contiguous()
        if not bool(torch.isfinite(result[name]).all()):
            raise UserError(f"{name} holds values that are not finite")
    return result
