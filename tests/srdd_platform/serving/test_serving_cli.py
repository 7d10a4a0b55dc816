"""``srdd serve`` as a process of its own, ended by signals as they come to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow

PATH = "/v1/images/generations"
SRDD = [sys.executable, "-c", "from srdd_platform.cli.main import main; main()"]
REQUESTS = 4
POLL_S = 0.05


@contextmanager
def served(pipeline: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a group of processes of its own, and its URL."""
    command = [*SRDD, "serve", str(pipeline), "--port", "0", "--max-batch", "2", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"Serving {pipeline} at http://127.0.0.1:"), line
        yield process, line.split()[-1]
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def ask(pool: ThreadPoolExecutor, url: str, n: int) -> list[Future[httpx.Response]]:
    """Requests that are in progress when this returns; on a busy machine some are answered."""
    asked = [
        pool.submit(httpx.post, f"{url}{PATH}", json={"class": i, "n": n, "seed": i}, timeout=60)
        for i in range(REQUESTS)
    ]

    def arrived() -> int:
        answered = sum(each.done() for each in asked)  # first: one may be answered in between
        inside: int = httpx.get(f"{url}/-/in_progress", trust_env=False).json()["requests"]
        return answered + inside

    while arrived() < REQUESTS:
        time.sleep(POLL_S)
    for _ in range(10):  # the proxy has them; these come after them to the replicas
        httpx.get(f"{url}/healthz", trust_env=False)
    return asked


def to_process(process: subprocess.Popen[str]) -> None:
    """As a service manager does."""
    process.terminate()


def to_group(process: subprocess.Popen[str]) -> None:
    """As a terminal does at Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


def terminate_group(process: subprocess.Popen[str]) -> None:
    """As `timeout` and job control do."""
    os.killpg(process.pid, signal.SIGTERM)


@pytest.mark.parametrize(
    ("end", "replicas"),
    [(to_process, "1"), (to_process, "2"), (to_group, "1"), (terminate_group, "1")],
)
def test_every_request_in_progress_is_answered(
    slow_pipeline: Path, end: Callable[[subprocess.Popen[str]], None], replicas: str
) -> None:
    with ThreadPoolExecutor(REQUESTS) as pool, served(
        slow_pipeline, "--replicas", replicas
    ) as (process, url):  # fmt: skip
        asked = ask(pool, url, 3)
        end(process)
        answers = [each.result() for each in asked]
        assert [answer.json().get("error") for answer in answers] == [None] * REQUESTS
        assert [len(answer.json()["data"]) for answer in answers] == [3] * REQUESTS
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out == "Stopping: requests in progress have 20 s; a second signal ends at once\n"


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        (to_process, 143, "srdd: terminated; give the same command again to go on\n"),
        (to_group, 130, "srdd: interrupted; give the same command again to go on\n"),
    ],
)
def test_a_second_signal_ends_at_once(
    slow_pipeline: Path, end: Callable[[subprocess.Popen[str]], None], code: int, message: str
) -> None:
    with ThreadPoolExecutor(REQUESTS) as pool, served(slow_pipeline) as (process, url):
        asked = ask(pool, url, 16)
        end(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Stopping")
        end(process)
        out, err = process.communicate()
        failed = [isinstance(each.exception(), httpx.TransportError) for each in asked]
    assert (process.returncode, out, err) == (code, "", message)
    assert any(failed)
