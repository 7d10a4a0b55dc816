"""A signal to the program's process group does not reach the processes of its local Ray."""

import os
import subprocess

import psutil
import pytest
from ray._private import services

from srdd_platform.core.ray_processes import own_process_groups
from srdd_platform.core.ray_session import Session

RAY = ("gcs_server", "raylet", "dashboard.py")


@pytest.mark.ray
def test_ray_s_processes_are_in_groups_of_their_own(ray_session: Session) -> None:
    assert ray_session.local
    found = {
        name: os.getpgid(process.pid)
        for process in psutil.Process().children(recursive=True)
        for name in RAY
        if any(part.endswith(name) for part in process.cmdline()[:3])
    }
    assert sorted(found) == sorted(RAY)
    assert os.getpgrp() not in found.values()


def test_ray_starts_processes_as_before_outside_the_block() -> None:
    with own_process_groups():
        inside = services.ConsolePopen(["sleep", "60"])
    outside = services.ConsolePopen(["sleep", "60"])
    groups = [os.getpgid(process.pid) for process in (inside, outside)]
    for process in (inside, outside):
        process.kill()
        process.wait()
    assert groups == [inside.pid, os.getpgrp()]
    assert issubclass(services.ConsolePopen, subprocess.Popen)
