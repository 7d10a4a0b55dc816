"""Checkpoints of a training: its state, and a manifest that says whose it is and what is in it."""

import errno
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs

from srdd.errors import UserError
from srdd.unpickle import unpickle
from srdd_platform.core.files import atomic_path, read_json, sha256_file, write_json
from srdd_platform.core.runs import CONFIG
from srdd_platform.core.storage import Storage, answered, open_storage

STATE, MANIFEST = "state.pt", "manifest.json"
UPLOAD_S = 3600.0  # for one checkpoint


def name_of(step: int) -> str:
    """A checkpoint's directory name."""
    return f"step_{step:06d}"


def write_checkpoint(storage: Storage, state: dict[str, Any], config: str, world: int) -> str:
    """Write a checkpoint, whole or not at all; one that a killed run left there goes.

    Args:
        storage: where the run's checkpoints are.
        state: with its ``step``.
        config: the hash of the settings it belongs to.
        world: workers that trained it.

    Returns:
        Its path on the storage's filesystem.

    Raises:
        OSError: the disk is full.
        UserError: the storage cannot be written.
    """
    name = name_of(int(state["step"]))
    target = storage.path(name)
    if storage.local:
        with atomic_path(Path(target), replace_directory=True) as directory:
            directory.mkdir()
            write_state(directory, state, config, world)
        return target
    with tempfile.TemporaryDirectory() as temporary:
        write_state(Path(temporary), state, config, world)
        what = f"cannot write the checkpoint {storage.name}/{name}"
        answered(what, lambda: _upload(Path(temporary), storage.filesystem, target), UPLOAD_S)
    return target


def _upload(directory: Path, filesystem: fs.FileSystem, target: str) -> None:
    """Copy a checkpoint, the manifest last; a copy that fails leaves nothing."""
    if filesystem.get_file_info(target).type != fs.FileType.NotFound:
        filesystem.delete_dir(target)
    filesystem.create_dir(target)
    try:
        for name in (STATE, MANIFEST):
            with (directory / name).open("rb") as source:
                with filesystem.open_output_stream(f"{target}/{name}") as stream:
                    shutil.copyfileobj(source, stream, 16 * 2**20)
    except BaseException:
        filesystem.delete_dir(target)
        raise


def write_state(directory: Path, state: dict[str, Any], config: str, world: int) -> None:
    """Write a checkpoint's files into an empty directory.

    Raises:
        OSError: the disk is full.
    """
    path = directory / STATE
    _save(state, path)
    manifest = {
        "step": int(state["step"]),
        "config": config,
        "world": world,
        "files": {STATE: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}},
    }
    write_json(directory / MANIFEST, manifest)


def _save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint's state; a full disk is an OSError, which torch hides."""
    try:
        torch.save(state, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    except RuntimeError as error:
        if "unexpected pos" not in str(error) and "write" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def read_checkpoint(
    storage: Storage, path: str, config: str, *, mapped: bool = False
) -> dict[str, Any]:
    """The state in a checkpoint, given its path on the storage.

    Args:
        storage: where the run's checkpoints are.
        path: there.
        config: the hash of the settings it must belong to.
        mapped: its tensors are mapped from the file, so that all of a node's workers share one.

    Raises:
        UserError: it belongs to another configuration, is damaged, or cannot be read.
    """
    if storage.local:
        return read_state(Path(path), config, mapped=mapped)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        for name in (MANIFEST, STATE):
            answered(
                f"cannot read the checkpoint {storage.name}/{Path(path).name}",
                partial(_download, storage.filesystem, f"{path}/{name}", directory / name),
                UPLOAD_S,
            )
        return read_state(directory, config, mapped=mapped)


def _download(filesystem: fs.FileSystem, source: str, target: Path) -> None:
    with filesystem.open_input_stream(source) as stream, target.open("wb") as file:
        shutil.copyfileobj(stream, file, 16 * 2**20)


def read_state(directory: Path, config: str, *, mapped: bool = False) -> dict[str, Any]:
    """The state in a local checkpoint directory.

    Raises:
        UserError: it belongs to another configuration, or a file is not the one written.
    """
    manifest = read_json(directory / MANIFEST)
    _refuse_foreign(manifest, config, str(directory))
    for name, written in manifest.get("files", {}).items():
        path = directory / name
        if not path.is_file() or sha256_file(path) != written["sha256"]:
            raise UserError(f"{path} is damaged: its SHA-256 is not the manifest's")
    state: dict[str, Any] = unpickle(directory / STATE, mapped=mapped)
    return state


def _refuse_foreign(manifest: Any, config: str, name: str) -> None:
    if not isinstance(manifest, dict) or "config" not in manifest:
        raise UserError(f"{name} is no checkpoint: {MANIFEST} does not say whose it is")
    if manifest["config"] != config:
        raise UserError(f"{name} is a checkpoint of another configuration")


def last_step(storage: Storage) -> int:
    """The step of the newest checkpoint that counts; 0 where there is none."""
    names = storage.registered()
    return int(names[-1].removeprefix("step_")) if names else 0


def check_unmoved(run: str, checkpoints: str) -> None:
    """Refuse another place for checkpoints than the run's, if it has none of them.

    Raises:
        UserError: it names both.
    """
    path = Path(run) / CONFIG
    before = read_json(path).get("checkpoints", checkpoints) if path.exists() else checkpoints
    if before == checkpoints:
        return
    old, new = open_storage(run, before), open_storage(run, checkpoints)
    if old.registered() and not new.registered():
        raise UserError(
            f"{run} keeps its checkpoints in {old.name}, and {new.name} has none: give the old "
            "place, or copy them to the new one"
        )


def claim_storage(run: str, checkpoints: str, config: str) -> Storage:
    """The storage of a run's checkpoints, found fit for use. The run directory is held.

    Args:
        run: its directory.
        checkpoints: where they go; "" for the run directory.
        config: the hash of the run's settings.

    Raises:
        UserError: it cannot be written, it holds checkpoints of another configuration, or the
            run's own lie elsewhere.
    """
    storage = open_storage(run, checkpoints)
    storage.check()
    names = storage.registered()
    if names:
        manifest = storage.read_json(f"{names[-1]}/{MANIFEST}")
        if manifest is None:
            raise UserError(f"{storage.name} has lost the checkpoint {names[-1]} that it lists")
        _refuse_foreign(manifest, config, storage.path(names[-1]))
    check_unmoved(run, checkpoints)
    recorded = read_json(Path(run) / CONFIG)
    if recorded.get("checkpoints") != checkpoints:
        write_json(Path(run) / CONFIG, {**recorded, "checkpoints": checkpoints})
    storage.prune()
    return storage
