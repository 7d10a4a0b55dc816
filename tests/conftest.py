"""Fixtures that are dear enough to share: one Ray, one browser, the official golden file."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import ray
import torch
from message_form import faults, field_names_in, option_fields
from safetensors.torch import load_file
from torch import Tensor
from written_by_55e1f42 import unpack

from srdd import presets
from srdd.errors import UserError
from srdd_platform.cli import command_errors
from srdd_platform.cli import main as cli
from srdd_platform.core.ray_session import Session, session
from srdd_platform.sweep.options import SweepArgs

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """For pytest-xdist: tests that share a Ray go to one process, others by file; no slow ones."""
    for item in items:
        if item.get_closest_marker("slow") and "slow" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="minutes: give -m slow"))
        shared = item.get_closest_marker("ray") is not None
        group = "ray" if shared else item.path.relative_to(ROOT).as_posix()
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One thread a process: sums come out in one order, and two cores serve Ray's workers too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _option_fields() -> frozenset[str]:
    return option_fields(cli.Command) | option_fields(SweepArgs)


@pytest.fixture(autouse=True)
def _messages_are_well_formed(
    monkeypatch: pytest.MonkeyPatch,
    _option_fields: frozenset[str],
) -> Iterator[None]:
    """Every message about wrong input that a test causes has the form of tests/message_form.py."""
    messages: list[str] = []
    lines: list[str] = []
    fail, begin = command_errors._fail, UserError.__init__

    def recorded(self: UserError, message: str, **more: str) -> None:
        begin(self, message, **more)
        messages.append(str(self))

    def failed(message: str, code: int = 2) -> NoReturn:
        lines.append(message)
        fail(message, code)

    monkeypatch.setattr(UserError, "__init__", recorded)
    monkeypatch.setattr(command_errors, "_fail", failed)
    yield
    wrong = [f"{text!r}: {fault}" for text in (*messages, *lines) for fault in faults(text)]
    for line in lines:
        wrong += [f"{line!r}: say {name} as an option" for name in
                  field_names_in(line, _option_fields)]  # fmt: skip
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Session]:
    """The one local Ray of the test run, two CPUs; its start is tried again on a slow machine."""
    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # trainings here are short
    with session(num_cpus=2) as cluster:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray, "shutdown", lambda: None)  # no test may end what others use
            yield cluster


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``runs/digits`` below the working directory, as commit 55e1f42 wrote it with small models."""
    from tiny_digits import few_digits, tiny_preset  # scikit-learn: not for every test

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.PRESETS, "digits", tiny_preset)
    monkeypatch.setattr("sklearn.datasets.load_digits", few_digits)
    unpack(tmp_path)
    return Path("runs/digits")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium to drive."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs one of {', '.join(names)}")
    return found


@pytest.fixture(scope="session")
def golden_official() -> Path:
    """A tiny official VAR with inputs and outputs; too large for the repository."""
    default = ROOT.parent / "shared" / "golden" / "var_official_a.safetensors"
    path = Path(os.environ.get("SRDD_GOLDEN") or default)
    if not path.is_file():
        pytest.skip("no official golden file (SRDD_GOLDEN names it)")
    return path


@pytest.fixture(scope="session")
def tiny_official() -> dict[str, dict[str, Tensor]]:
    """The committed golden file by prefix: ``vqvae`` and ``var`` in VAR's names, and ``io``."""
    parts: dict[str, dict[str, Tensor]] = {"vqvae": {}, "var": {}, "io": {}}
    for name, tensor in load_file(ROOT / "tests" / "data" / "golden_tiny.safetensors").items():
        prefix, rest = name.split(".", 1)
        parts[prefix][rest] = tensor
    return parts
