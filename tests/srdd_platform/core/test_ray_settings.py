"""Settings of Ray's core that it cannot read are refused before Ray is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from srdd.errors import UserError
from srdd_platform.core import ray_settings as module
from srdd_platform.core.ray_settings import check_settings

SWEEP = Path(__file__).parents[3] / "sweeps" / "resample_threshold.py"
COMMANDS = {
    "srdd": ("-c", "from srdd_platform.cli.main import main; main()", "report", "/nowhere"),
    "sweep": (str(SWEEP), "--out", "/nowhere"),
}


@pytest.mark.parametrize(("command", "value"), [("srdd", "abc"), ("sweep", "")])
def test_a_setting_that_ends_ray_without_a_word_is_refused(
    monkeypatch: pytest.MonkeyPatch, command: str, value: str
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", value)
    done = subprocess.run(
        [sys.executable, *COMMANDS[command]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"srdd: RAY_worker_niceness is {value!r}, which Ray cannot read: give it a number, or "
        "unset it\n"
    )


def test_the_one_of_several_settings_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_imports", lambda settings: "RAY_two" not in settings)
    for name, value in {"RAY_one": "text", "RAY_two": "x", "RAY_three": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^RAY_two is 'x'"):
        check_settings()


@pytest.mark.parametrize("value", ["5", "-1", "0.5", "true", "False"])
def test_numbers_and_truths_are_not_tried(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(module, "_imports", lambda settings: pytest.fail("a process for nothing"))
    monkeypatch.setenv("RAY_worker_niceness", value)
    monkeypatch.setenv("RAY_NAMESPACE", "text")  # none of the core's
    check_settings()
