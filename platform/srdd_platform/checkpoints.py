"""Checkpoints of a training: its state, and a manifest that says whose it is."""

import errno
import os
from pathlib import Path
from typing import Any

import torch

from srdd.errors import UserError
from srdd_platform.files import read_json, write_json
from srdd_platform.jobs import Job


def write_state(directory: Path, state: dict[str, Any], job: Job, world: int) -> None:
    """Write a checkpoint into an empty directory.

    Raises:
        OSError: the disk is full.
    """
    _save(state, directory / "state.pt")
    manifest = {"step": int(state["step"]), "config": job.config_hash, "world": world}
    write_json(directory / "manifest.json", manifest)


def _save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint's state; a full disk is an OSError, which torch hides."""
    try:
        torch.save(state, path)
    except RuntimeError as error:
        if "unexpected pos" not in str(error) and "write" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def read_state(directory: Path, job: Job) -> dict[str, Any]:
    """A checkpoint's state.

    Raises:
        UserError: it belongs to another configuration.
    """
    if read_json(directory / "manifest.json")["config"] != job.config_hash:
        raise UserError(f"{directory} is a checkpoint of another configuration")
    state: dict[str, Any] = torch.load(
        directory / "state.pt", map_location="cpu", weights_only=True
    )
    return state
