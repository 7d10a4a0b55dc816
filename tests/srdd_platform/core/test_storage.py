"""Where checkpoints lie: local files that are whole, an object store, and what is refused."""

import json
import os
import resource
import signal
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow
import pytest
import torch

from srdd.errors import UserError
from srdd.metrics.classifier import ClassifierConfig
from srdd.train.config import OptimConfig
from srdd_platform.core.files import read_json, write_json
from srdd_platform.core.storage import SNAPSHOT, Storage, answered, open_storage
from srdd_platform.train.checkpoints import (
    claim_storage,
    last_step,
    name_of,
    read_checkpoint,
    write_checkpoint,
)
from srdd_platform.train.job import Job, Runtime
from srdd_platform.train.kind import Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.launcher import check_start
from srdd_platform.train.options import Options


def a_job(run: Path, checkpoints: str = "", steps: int = 9) -> Job:
    settings = Settings(
        model=ClassifierConfig(num_classes=2, resolution=16), optim=OptimConfig(steps=steps)
    )
    runtime = Runtime(checkpoints=checkpoints)
    kind = KINDS["classifier"]
    return Job(kind=kind, run=str(run), data="", settings=settings, runtime=runtime)


def claimed(job: Job) -> Storage:
    return claim_storage(job.run, job.runtime.checkpoints, job.config_hash)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "module": {"weight": torch.full((3, 5), float(step))}}


def register(storage: Storage, *names: str) -> None:
    """Write the record of whole checkpoints as Ray does."""
    found = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    with storage.filesystem.open_output_stream(storage.path(SNAPSHOT)) as stream:
        stream.write(json.dumps({"checkpoint_results": found}).encode())


def started(job: Job) -> Job:
    Path(job.run).mkdir(parents=True, exist_ok=True)
    settings, runtime = job.config
    config = {"kind": f"train {job.kind.name}", "settings": settings, "runtime": runtime}
    write_json(Path(job.run) / "config.json", config)
    return job


def check_a_life(job: Job) -> None:
    """Checkpoints are written, found, read, pruned, and refused to another configuration."""
    storage = claimed(started(job))
    assert last_step(storage) == 0
    for step in (2, 4, 6):
        write_checkpoint(storage, state(step), job.config_hash, world=2)
    register(storage, name_of(2), name_of(4))
    write_checkpoint(storage, state(4), job.config_hash, world=1)  # again, after a restart
    assert last_step(storage) == 4
    read = read_checkpoint(storage, storage.path(name_of(4)), job.config_hash)
    assert read["module"]["weight"].equal(state(4)["module"]["weight"])
    manifest = storage.read_json("step_000004/manifest.json")
    assert (manifest["step"], manifest["world"], manifest["config"]) == (4, 1, job.config_hash)
    assert manifest["files"]["state.pt"]["bytes"] > 60
    claimed(job)  # 6 was never registered: a killed run left it
    assert storage.read_json("step_000006/manifest.json") is None
    assert storage.read_json("step_000002/manifest.json")["step"] == 2
    with pytest.raises(UserError, match="step_000004 is a checkpoint of another configuration"):
        claimed(a_job(Path(job.run), job.runtime.checkpoints, steps=8))


def test_a_local_directory(tmp_path: Path) -> None:
    check_a_life(a_job(tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        SNAPSHOT, "step_000002", "step_000004",
    ]  # fmt: skip
    check_a_life(a_job(tmp_path / "other", f"file://{tmp_path}/elsewhere"))
    assert (tmp_path / "elsewhere" / "step_000004" / "state.pt").is_file()


def test_a_bucket(bucket: str, tmp_path: Path) -> None:
    check_a_life(a_job(tmp_path / "run", f"{bucket}/run #1/größe 100%25"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    for other in ("s3://absent/runs", "s3://models"):
        with pytest.raises(UserError, match=r"absent|names no folder") as caught:
            claimed(a_job(tmp_path / "run", other))
        assert "secret" not in str(caught.value)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    job = a_job(tmp_path / "run")
    storage = claimed(started(job))
    path = Path(write_checkpoint(storage, state(2), job.config_hash, world=1)) / "state.pt"
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(UserError, match=r"step_000002/state.pt is damaged: its SHA-256"):
        read_checkpoint(storage, str(path.parent), job.config_hash)


def test_checkpoints_do_not_move_by_accident(tmp_path: Path) -> None:
    job = started(a_job(tmp_path / "run"))
    storage = claimed(job)
    write_checkpoint(storage, state(2), job.config_hash, world=1)
    register(storage, name_of(2))
    moved = a_job(tmp_path / "run", str(tmp_path / "new"))
    with pytest.raises(UserError, match=r"keeps its checkpoints in .*run/checkpoints, and .*/new"):
        claimed(moved)
    with pytest.raises(UserError, match=r"and .*/new has none: give the old place"):
        check_start(moved, tmp_path / "run")  # before Ray starts
    Path(storage.root).rename(tmp_path / "new")
    assert last_step(claimed(moved)) == 2
    assert read_json(tmp_path / "run" / "config.json")["checkpoints"] == str(tmp_path / "new")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for where in (str(tmp_path / "file" / "below"), "/proc/nothing"):
        with pytest.raises(UserError, match=r"^cannot keep checkpoints in [^\n]*$"):
            open_storage(str(tmp_path), where).check()


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("s3://someone:hunter2@models/runs", "credentials"),
        ("s3://models/runs?secret_key=hunter2", "credentials"),
        ("gopher://models/runs", "the scheme gopher is not known"),
    ],
)
def test_a_location_with_a_password_or_of_an_unknown_kind_is_refused(
    location: str, why: str
) -> None:
    with pytest.raises(UserError, match=why) as caught:
        open_storage("run", location)
    assert "hunter2" not in str(caught.value)


def test_a_path_is_the_same_wherever_a_worker_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {None: "", "kept": str(tmp_path / "kept"), "S3://a/b/": "s3://a/b"}
    for given, settled in places.items():
        assert Options(checkpoints=given).settled_checkpoints == settled


def test_a_filesystem_that_does_not_answer_is_given_up() -> None:
    never = threading.Event()
    with pytest.raises(
        UserError,
        match=r"^cannot read it: no answer in 0.05 s: check",
    ):
        answered("cannot read it", never.wait, limit_s=0.05)
    never.set()


class _OfLibraryError(Exception):
    """As httpx's: no OSError."""


CHECK = ": check the location and the network"
_OfLibraryError.__module__ = "httpx._exceptions"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            _OfLibraryError("[Errno 111] Connection refused"),
            f"cannot read it: Connection refused{CHECK}",
        ),
        (_OfLibraryError("[Errno -3] try again"), f"cannot read it: try again{CHECK}"),
        (_OfLibraryError(), f"cannot read it: _OfLibraryError{CHECK}"),
        (OSError("reset"), "cannot read it: reset"),
        (pyarrow.ArrowInvalid("no"), "cannot read it: no"),
    ],
)
def test_what_the_library_of_a_store_raises_is_one_line(error: Exception, said: str) -> None:
    with pytest.raises(UserError) as found:
        answered("cannot read it", Mock(side_effect=error))
    assert str(found.value) == said


@pytest.mark.parametrize("error", [TypeError("a bug"), MemoryError(), UserError("as it is")])
def test_a_bug_or_a_line_of_our_own_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as found:
        answered("cannot read it", Mock(side_effect=error))
    assert found.value is error


@pytest.mark.parametrize("size", [5_000, 500_000])  # below and above one buffer
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, size: int) -> None:
    filesystem = open_storage(str(tmp_path), "").filesystem
    path = str(tmp_path / SNAPSHOT)
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"old")
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            with filesystem.open_output_stream(path) as stream:
                stream.write(b"x" * size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [found.name for found in tmp_path.iterdir()] == [SNAPSHOT]
    assert Path(path).read_bytes() == b"old"


def test_filesystems_of_other_threads_are_the_same() -> None:
    """Ray compares a checkpoint's filesystem with the run's."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(open_storage("run", "").filesystem))
    thread.start()
    thread.join()
    assert found[0] == open_storage("run", "").filesystem
