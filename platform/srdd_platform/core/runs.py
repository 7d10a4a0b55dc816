"""Run directories: one configuration, one writer at a time, and the same command resumes.

::

    config.json       kind, code version, settings (compared on resume) and runtime (not compared)
    metrics.jsonl     one object with ``step`` and the losses a line; equal runs write equal bytes
    throughput.jsonl  the same steps with what a clock says: ``time`` (seconds since 1970),
                      ``images_per_s``, ``mfu``, ``data_wait`` (see srdd_platform.train.monitor)
    warnings.jsonl    errors of what only watches the run: metrics, previews, speeds
    grids/            step_NNNNNN.png, samples or reconstructions (see train/previews.py)
    tensorboard/      event files, written anew from the files above (see train/tensorboard.py)
    checkpoints/      step_NNNNNN/
    validation.json   what the finished model reaches on the held-out split
    model/            the finished model or pipeline directory
    codes/            of a transformer's run, where the tokenizer's folder cannot be written
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from srdd.errors import UserError
from srdd.load import is_pipeline
from srdd_platform.core.files import can_write, read_json, write_bytes, write_json

CONFIG = "config.json"
METRICS, THROUGHPUT = "metrics.jsonl", "throughput.jsonl"
_LOCK = ".lock"


def code_version() -> str:
    """The package's version, and the commit where the code is a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return version("srdd")
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:  # no git here
        return version("srdd")
    commit = described.stdout.strip()
    return f"{version('srdd')}+{commit}" if commit else version("srdd")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, a line each: "optim.lr: 0.001 -> 0.002"."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{path}.{key}" if path else key
            if key not in old or key not in new:
                found.append(f"{inner}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}")
            else:
                found += differences(old[key], new[key], inner)
        return found
    if _holds_objects(old) and _holds_objects(new):
        if len(old) != len(new):
            return [f"{path}: {len(old)} entries -> {len(new)}"]
        pairs = enumerate(zip(old, new, strict=True), 1)
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path} {i}")]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def _holds_objects(value: Any) -> bool:
    """Whether a JSON value is a list of objects, which is too long to be shown."""
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


# Settings of memory alone: blocks again in the backward pass change nothing, a batch in parts
# changes a result by rounding, as another number of workers does. As they are by default:
_OF_MEMORY = {"accumulate": 1, "recompute": False}


def decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those that decide no result as they are by default."""
    optim = settings.get("optim")
    if not isinstance(optim, dict):
        return settings
    plain = {name: value for name, value in _OF_MEMORY.items() if name in optim}
    return {**settings, "optim": {**optim, **plain}}


def refuse_foreign(directory: Path) -> None:
    """Refuse what is no place for a run.

    Raises:
        UserError: it is a file, or a directory with something else in it.
    """
    if directory.is_file():
        raise UserError(f"{directory} is a file; give a directory")
    strangers = directory.is_dir() and any(
        path.name not in (_LOCK, "codes") and not path.match(f".{CONFIG}.*.tmp")
        for path in directory.iterdir()
    )
    if strangers and not (directory / CONFIG).exists():
        raise UserError(f"{directory} is not empty and holds no run: give another directory")


def check_place(directory: Path) -> None:
    """Refuse before Ray starts what :func:`open_run` would refuse after it. Nothing is made.

    Raises:
        UserError: it is no place for a run, cannot be written, or another process writes there.
    """
    refuse_foreign(directory)
    if not can_write(directory):
        raise UserError(f"{directory} cannot be written: check the owner and mode of its folder "
                        "and its disk, or give another directory")  # fmt: skip
    if (directory / _LOCK).exists():
        with _held(directory):
            pass


def check_run(directory: Path, kind: str, settings: dict[str, Any]) -> None:
    """:func:`check_place`, and refuse what another run's directory holds. Nothing is made.

    Args:
        directory: the run directory.
        kind: what is to run in it.
        settings: what decides the result.

    Raises:
        UserError: it is no place for the run, or holds one of other settings.
    """
    check_place(directory)
    if (directory / CONFIG).exists():
        _read_same(directory, kind, json.loads(json.dumps(settings)))


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Be the only process that writes to a run directory.

    Raises:
        UserError: another process is.
    """
    lock = FileLock(directory / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is writing to {directory}: wait for it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def open_run(
    directory: Path, kind: str, settings: dict[str, Any], runtime: dict[str, Any]
) -> Iterator[Path]:
    """Hold a run directory: make it, or go on in it if it is the same run.

    Args:
        directory: the run directory.
        kind: what runs in it, e.g. "train tokenizer".
        settings: what decides the result; a change is refused with the difference, but for
            :func:`decisive`'s exceptions.
        runtime: what does not (workers, device, paths, intervals).

    Raises:
        UserError: another process writes there, the directory holds another run, or it holds
            something that is no run.
    """
    refuse_foreign(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _held(directory):
        _claim(directory, kind, settings, runtime)
        yield directory


def _claim(directory: Path, kind: str, settings: dict[str, Any], runtime: dict[str, Any]) -> None:
    path = directory / CONFIG
    settings, runtime = json.loads(json.dumps([settings, runtime]))  # as they will be read back
    if path.exists():
        before = _read_same(directory, kind, settings)
        if (before["settings"], before["runtime"]) != (settings, runtime):
            write_json(path, {**before, "settings": settings, "runtime": runtime})
        return
    write_json(
        path, {"kind": kind, "code": code_version(), "settings": settings, "runtime": runtime}
    )


def _read_same(directory: Path, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run that has these settings, as JSON reads them back.

    Raises:
        UserError: it has others, or there is no configuration of a run.
    """
    path = directory / CONFIG
    before = read_json(path)
    if not isinstance(before, dict) or not {"settings", "runtime"} <= before.keys():
        raise UserError(f"{path} is no configuration of a run: give another directory")
    if before.get("kind") != kind:
        raise UserError(f"{directory} holds a run of `{before.get('kind')}`, not of `{kind}`")
    changed = differences(decisive(before["settings"]), decisive(settings))
    if changed:
        raise UserError(
            f"{directory} holds a run with other settings ({'; '.join(changed[:6])}): "
            "give another directory or the old settings"
        )
    return before


def note(directory: Path, key: str, value: Any) -> None:
    """Add to a run's ``config.json`` what only became known on the way; said once, it stays."""
    config = read_json(directory / CONFIG)
    if key not in config:
        write_json(directory / CONFIG, {**config, key: value})


def model_dir(path: Path) -> Path:
    """A model or pipeline directory, given itself or the run directory it lies in."""
    return path / "model" if (path / CONFIG).exists() and (path / "model").is_dir() else path


def tokenizer_dir(path: Path) -> Path:
    """A tokenizer's model directory, given itself, its run, or a pipeline's directory or run."""
    found = model_dir(path)
    return found / "tokenizer" if is_pipeline(found) else found


def failure(directory: Path) -> str | None:
    """Why a run stopped for good, if it did."""
    path = directory / "failure.json"
    return f"{directory}: {read_json(path)['error']}" if path.exists() else None


def append_metrics(
    directory: Path, step: int, metrics: dict[str, float], name: str = METRICS, digits: int = 6
) -> None:
    """Add a line to ``metrics.jsonl``, or to the file of that name."""
    with (directory / name).open("a") as file:
        rounded = {name: float(f"{value:.{digits}g}") for name, value in metrics.items()}
        file.write(json.dumps({"step": step, **rounded}) + "\n")


def read_metrics(directory: Path, name: str = METRICS) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``; one that is half-written is left out."""
    path = directory / name
    return parse_lines(path.read_text()) if path.exists() else []


def parse_lines(text: str) -> list[dict[str, float]]:
    """The JSON objects of some lines; what is no whole one is left out."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def cut_metrics(directory: Path, step: int, names: Sequence[str] = (METRICS, THROUGHPUT)) -> None:
    """Forget metrics after ``step``, from which the run goes on."""
    for name in names:
        lines = read_metrics(directory, name)
        kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
        write_bytes(directory / name, "".join(kept).encode())
