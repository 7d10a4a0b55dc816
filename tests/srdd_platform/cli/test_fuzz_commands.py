"""Commands on random inputs end in success, in one line or in usage: never in a traceback.

The whole run, 2,000 inputs in process and 50 as processes of their own::

    python -m pytest -m slow tests/srdd_platform/cli/test_fuzz_commands.py
"""

import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
import ray
from fuzz_inputs import KINDS, make_case

from srdd_platform.cli import main as cli

FEW, MANY, PROCESSES = 8, 400, 10  # inputs of each kind
LIMIT_S = 120  # of a process


class RayWouldStartError(BaseException):
    """The command has passed its checks and reached Ray, which does not start here."""


@pytest.fixture
def quiet_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaves this machine, and Ray does not start."""
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)

    def refuse(*_: object, **__: object) -> None:
        raise RayWouldStartError

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def trouble(kind: str, seed: int, pipeline: Path, shards: Path, capsys: pytest.CaptureFixture[str],
            monkeypatch: pytest.MonkeyPatch) -> str:  # fmt: skip
    """Run one case in process; "" where it ends as it should."""
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        patch.chdir(folder)
        case = make_case(kind, seed, pipeline, shards)
        for name, value in case.environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["srdd", *case.arguments])
        code: object = 0
        end = ""
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        except RayWouldStartError:
            pass
        except BaseException:
            end = traceback.format_exc(limit=-3)
        error = capsys.readouterr().err
    shown = f"{kind} {seed}: srdd {case.arguments} {case.environment}"
    if end:
        return f"{shown}\n{end}"
    if code not in (0, 2):
        return f"{shown}\nexit {code}: {error}"
    if code == 2 and not is_told(error):
        return f"{shown}\n{error}"
    return ""


def is_told(error: str) -> bool:
    """Whether standard error ends in one line of ours, or is the parser's own box."""
    last = error.rstrip("\n").splitlines()[-1:]
    return "Traceback" not in error and (
        bool(last and last[0].startswith("srdd: ")) or "\u2570" in error or "usage:" in error
    )


@pytest.mark.usefixtures("quiet_network")
@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(FEW), id="few"),
        pytest.param(range(FEW, FEW + MANY), id="many", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_random_inputs(
    kind: str,
    seeds: range,
    tiny_pipeline: Path,
    digits_shards: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = [trouble(kind, s, tiny_pipeline, digits_shards, capsys, monkeypatch) for s in seeds]
    found = [text for text in cases if text]
    assert not found, f"{len(found)} of {len(seeds)}:\n" + "\n".join(found[:20])


_PROCESS = """
import os, sys
folder, paths, kind, seed, pipeline, shards = sys.argv[1:]
os.chdir(folder)
sys.path[:0] = paths.split(os.pathsep)
from pathlib import Path
from fuzz_inputs import make_case
case = make_case(kind, int(seed), Path(pipeline), Path(shards))
os.environ.update(case.environment)
main = "from srdd_platform.cli.main import main; main()"
os.execv(sys.executable, [sys.executable, "-c", main, *case.arguments])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_some_as_real_processes(kind: str, tiny_pipeline: Path, digits_shards: Path) -> None:
    """With the real Ray, where a case gets that far; a server is ended by SIGTERM."""
    found = []
    for seed in range(10_000, 10_000 + PROCESSES):
        with tempfile.TemporaryDirectory() as folder:
            arguments = [
                folder,
                os.pathsep.join(sys.path),
                kind,
                seed,
                tiny_pipeline,
                digits_shards,
            ]
            done = subprocess.run(
                ["timeout", "-k", "30", str(LIMIT_S), sys.executable, "-c", _PROCESS,
                 *map(str, arguments)],
                env=os.environ | OFFLINE, capture_output=True, text=True, errors="replace",
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        if "Traceback" in done.stderr or not (
            done.returncode == 0
            or (done.returncode == 2 and is_told(done.stderr))
            or (done.returncode == 124 and "Serving" in done.stdout)
        ):
            found.append(f"{kind} {seed}: exit {done.returncode}\n{done.stderr[-1500:]}")
    assert not found, "\n".join(found)
