"""Environments in which people start Ray, tried on the real one: it works or ends in one line.

Every cell is a process of its own. Six of them run always, beside the Ray of the other tests; the
whole table, which docs/cluster.md shows, runs on a cluster of its own.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray

from srdd_platform.core.ray_session import Session

DOCS = Path(__file__).parents[3] / "docs" / "cluster.md"
WAYS = ("local", "auto", "HOST:PORT")
CELL = """
import sys
import ray
from srdd_platform.cli.command_errors import guarded
from srdd_platform.core.ray_session import session

class Actor:
    def interpreter(self):
        return sys.executable

def cell():
    with session(None if sys.argv[1] == "local" else sys.argv[1]) as here:
        apart = {"env_vars": {"A": "b"}}  # as Ray Train starts its workers: by a shell
        worker = ray.remote(Actor).options(num_cpus=0, runtime_env=apart).remote()
        python = ray.get(worker.interpreter.remote())
        print("works", here.local, ray.get_runtime_context().gcs_address, python)

guarded(cell)
"""
LONG = "slurm_jobdir_12345678/" * 4

# What is set (HOST is the cluster, HERE a directory of the test), and what each way then says.
TABLE: dict[str, tuple[str, str, str]] = {
    "nothing": ("works", "works", "works"),
    "RAY_ADDRESS=http://127.0.0.1:8265": ("works", "RAY_ADDRESS 'http:", "works"),
    "RAY_ADDRESS=ray://127.0.0.1:10001": ("works", "RAY_ADDRESS 'ray:", "works"),
    "RAY_ADDRESS=127.0.0.1:1": ("works", "no Ray cluster answers", "works"),
    "RAY_ADDRESS=HOST": ("works", "works", "works"),
    "RAY_AUTH_MODE=disabled": ("works", "works", "works"),
    "RAY_AUTH_MODE=token": ("works", "works", "works"),
    "RAY_AUTH_TOKEN=wrong": ("works", "does not take the token", "does not take the token"),
    "RAY_AUTH_TOKEN_PATH=HERE/none": ("works", "wants a token", "wants a token"),
    "HOME=HERE": ("works", "wants a token", "wants a token"),
    "HOME=/dev/null": ("works", "wants a token", "wants a token"),
    "HOME=": ("works", "wants a token", "wants a token"),
    "http_proxy=http://127.0.0.1:9": ("works", "works", "works"),
    f"TMPDIR=HERE/{LONG}": ("works", "works", "works"),
    "RAY_TMPDIR=/dev/null": ("works", "works", "works"),
    "CUDA_VISIBLE_DEVICES=-1": ("works", "works", "works"),
    "CUDA_VISIBLE_DEVICES=GPU-5b1c": ("works", "works", "works"),
    "RAY_ROTATION_MAX_BYTES=x": ("did not start", "cannot join", "cannot join"),
    "RAY_USE_TLS=1": ("RAY_USE_TLS", "RAY_USE_TLS", "RAY_USE_TLS"),
    "PYTHON=HERE/my work/bin/python": ("works", "works", "works"),
    "PYTHON=HERE/it's/bin/python": ("cannot start workers", "works", "works"),
}
READ = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS")


def run_cell(
    way: str, settings: str, *, here: Path, host: str, environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """One process in an environment, by one way into Ray."""
    python = sys.executable
    environ = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(100 * 2**20), **environ}
    for setting in settings.split("; ") if settings != "nothing" else ():
        name, value = setting.replace("HERE", str(here)).split("=", 1)
        if name == "PYTHON":
            python = value
            folder = Path(value).parents[1]
            folder.symlink_to(sys.prefix)
        else:
            if name == "TMPDIR":
                Path(value).mkdir(parents=True)
            environ[name] = host if value == "HOST" else value
    return subprocess.run(
        [python, "-c", CELL, host if way == "HOST:PORT" else way], env=environ,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def judge(done: subprocess.CompletedProcess[str], expected: str) -> None:
    """It works and says nothing else, or ends with the one line."""
    if expected == "works":
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("works ")
        assert done.stderr == ""
    else:
        assert done.returncode == 2, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("srdd: ")
        assert expected in line


def plain(**more: str) -> dict[str, str]:
    """This process's environment without what a table's row may set."""
    return {name: value for name, value in os.environ.items() if name not in READ} | more


@pytest.mark.ray
@pytest.mark.parametrize(
    ("way", "settings", "expected"),
    [
        ("HOST:PORT", "http_proxy=http://127.0.0.1:9; RAY_ADDRESS=http://127.0.0.1:8265", "works"),
        ("HOST:PORT", "RAY_AUTH_TOKEN=wrong", "does not take the token of RAY_AUTH_TOKEN"),
        ("HOST:PORT", "RAY_AUTH_TOKEN=; HOME=HERE", "wants a token, and none is here"),
        ("auto", "RAY_ADDRESS=ray://127.0.0.1:10001", "RAY_ADDRESS 'ray://127.0.0.1:10001' is"),
    ],
)
def test_a_cluster_is_joined_or_the_reason_said(
    ray_session: Session, tmp_path: Path, way: str, settings: str, expected: str
) -> None:
    host = ray.get_runtime_context().gcs_address
    environ = plain(RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"])
    judge(run_cell(way, settings, here=tmp_path, host=host, environ=environ), expected)


@pytest.mark.ray
def test_auto_leaves_the_local_ray_of_another_command_alone(
    ray_session: Session, tmp_path: Path
) -> None:
    host = ray.get_runtime_context().gcs_address
    environ = plain(RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"])
    done = run_cell("auto", "nothing", here=tmp_path, host=host, environ=environ)
    assert host not in done.stdout  # a person may have another Ray on this machine
    assert done.returncode == 0 or len(done.stderr.splitlines()) == 1


@pytest.mark.ray
def test_a_local_ray_starts_in_a_hostile_environment(ray_session: Session, tmp_path: Path) -> None:
    settings = (
        f"PYTHON=HERE/my work/bin/python; TMPDIR=HERE/{LONG}; HOME=/dev/null; "
        "RAY_ADDRESS=http://127.0.0.1:8265; http_proxy=http://127.0.0.1:9; CUDA_VISIBLE_DEVICES=-1"
    )
    judge(run_cell("local", settings, here=tmp_path, host="", environ=plain()), "works")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A cluster that wants a token, as `ray start` begins it, and the home that has the token."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("a" * 64)
    environ = plain(HOME=str(home), RAY_USAGE_STATS_ENABLED="0")
    with tempfile.TemporaryDirectory(dir="/tmp") as sessions:  # short, for sockets
        started = subprocess.run(
            [
                sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port", "0",
                "--num-cpus", "1", "--object-store-memory", str(100 * 2**20),
                "--include-dashboard=false", "--temp-dir", sessions,
            ],
            env=environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            assert started.returncode == 0, started.stderr
            address = (Path(sessions) / "ray_current_cluster").read_text()
            yield SimpleNamespace(address=address, environ=environ)
        finally:
            for process in psutil.process_iter(["cmdline"]):
                if any(sessions in part for part in process.info["cmdline"] or ()):
                    process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("settings", TABLE)
def test_each_environment_works_or_ends_in_one_line(
    cluster: SimpleNamespace, tmp_path: Path, settings: str, way: str
) -> None:
    done = run_cell(way, settings, here=tmp_path, host=cluster.address, environ=cluster.environ)
    judge(done, TABLE[settings][WAYS.index(way)])


def test_the_table_is_that_of_the_documentation() -> None:
    shown = DOCS.read_text(encoding="utf-8")
    for settings, outcomes in TABLE.items():
        cells = " | ".join("works" if cell == "works" else f"`{cell}`" for cell in outcomes)
        name = settings.replace(LONG, "LONG").replace("HERE/", "DIR/").replace("=HERE", "=DIR")
        assert f"| `{name}` | {cells} |" in shown
