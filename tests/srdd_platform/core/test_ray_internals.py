"""Ray's private names are still there: the first test to look at after an upgrade of Ray."""

import re
from pathlib import Path

import pytest

from srdd_platform.core import ray_internals
from srdd_platform.core.ray_session import Session
from srdd_platform.train import ray_internals as train_internals

PLATFORM = Path(ray_internals.__file__).parents[1]


def test_all_names_are_there() -> None:
    assert all(getattr(ray_internals, name) for name in ray_internals.__all__)
    assert all(getattr(train_internals, name) for name in train_internals.__all__)
    assert ray_internals.services.ConsolePopen
    assert isinstance(ray_internals.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV, bool)
    assert ray_internals.ray_constants.GLOBAL_GRPC_OPTIONS


def test_no_other_module_uses_a_private_name_of_ray() -> None:
    found = {
        path.relative_to(PLATFORM).as_posix()
        for path in PLATFORM.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\bray\.(_[a-z]|core\.|.*\._internal)", line)
    }
    assert found == {
        "core/ray_internals.py",
        "core/ray_settings.py",  # imports Ray's core in a process of its own, to see whether it can
        "train/ray_internals.py",
    }


@pytest.mark.ray
def test_what_they_say_of_a_ray_that_runs(ray_session: Session) -> None:
    assert ray_internals.dashboard_address() in ray_session.dashboard_url
    assert ray_internals.dashboard_address()
    assert [node["CPU"] <= 2 for node in ray_internals.free_by_node()] == [True]
    assert ray_internals.autoscaler_limits() == {}
    logs = ray_internals.logs_dir()
    assert logs is not None
    assert (logs / "raylet.out").exists()
