"""Load a generator of any family: a directory, a run directory or a repository on the hub."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd.generator import Generator
from srdd.var import pipeline as var

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# A family is known by a file of its pipeline directories.
FAMILIES: dict[str, Callable[[Path], Generator[Any]]] = {"transformer/config.json": var.load}


def load_pipeline(source: str | Path) -> Generator[Any]:
    """Load a generator, in eval mode, on the CPU.

    Args:
        source: a pipeline directory, a run directory with one in ``model/``, or the id of a
            Hugging Face repository in this format ("owner/name").

    Raises:
        UserError: it is missing, damaged, of another kind, or its parts do not fit together.
    """
    directory = locate(source)
    for file, load in FAMILIES.items():
        if (directory / file).is_file():
            return load(directory)
    raise UserError(f"{source} is no pipeline: it has no {_files()}")


def load_var(source: str | Path) -> var.Pipeline:
    """Load a scale-wise model, as :func:`load_pipeline`.

    Raises:
        UserError: as there, or the model is of another family.
    """
    loaded = load_pipeline(source)
    if not isinstance(loaded, var.Pipeline):
        raise UserError(f"{source} is a model of family {loaded.card.family}: a scale-wise one "
                        "(VAR, SDD) is needed")  # fmt: skip
    return loaded


def is_pipeline(directory: Path) -> bool:
    """Whether a directory looks like a pipeline of a known family."""
    return any((directory / file).is_file() for file in FAMILIES)


def find_pipeline(path: Path) -> Path | None:
    """The pipeline directory that a path on this machine means; None where it means none.

    Args:
        path: a pipeline directory, or a run directory with one in ``model/``.
    """
    return next((each for each in (path, path / "model") if is_pipeline(each)), None)


def _files() -> str:
    """The files of which a pipeline directory has one."""
    return " and no ".join(FAMILIES)


def locate(source: str | Path) -> Path:
    """The pipeline directory that ``source`` means, fetched from the hub if it is an id.

    Raises:
        UserError: it is missing or of another kind.
    """
    path = Path(source)
    if found := find_pipeline(path):
        return found
    if path.exists():
        raise UserError(f"{path} is no pipeline directory: it has no {_files()}")
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
