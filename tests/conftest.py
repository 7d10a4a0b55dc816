"""Fixtures that are dear enough to share: one Ray, one browser, the official golden file."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from srdd_platform.ray_session import Session, session

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
def ray_session() -> Iterator[Session]:
    """The one local Ray of the test run, two CPUs; its start is tried again on a slow machine."""
    os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # trainings here are short
    with session(num_cpus=2) as cluster:
        yield cluster


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
