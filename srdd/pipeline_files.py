"""The files that a pipeline directory of any family has beside its weights.

::

    sampler.json    the sampler's settings
    classes.json    the class names, in label order

Weights are in ``PART/model.safetensors``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from srdd.errors import UserError
from srdd.json_files import read_json
from srdd.validation import from_dict, to_dict

S = TypeVar("S")

SAMPLER, CLASSES = "sampler.json", "classes.json"


def read_sampler(directory: Path, kind: type[S]) -> S:
    """The sampler's settings, of a family's type.

    Raises:
        UserError: the file is missing or damaged, or a setting is wrong.
    """
    return from_dict(kind, _read(directory / SAMPLER), where=SAMPLER)


def read_class_names(directory: Path) -> tuple[str, ...]:
    """The class names, in label order.

    Raises:
        UserError: the file is missing, or is not a list of names.
    """
    names = _read(directory / CLASSES)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{directory / CLASSES} must be a list of class names")
    return tuple(names)


def write_sampler(directory: Path, sampler: Any) -> None:
    """Write the sampler's settings."""
    _write(directory / SAMPLER, to_dict(sampler))


def write_class_names(directory: Path, names: Sequence[str]) -> None:
    """Write the class names."""
    _write(directory / CLASSES, list(names))


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the pipeline directory is incomplete") from None


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
