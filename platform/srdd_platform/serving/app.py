"""Serve a pipeline: from the command to the signal that ends it."""

import errno
import io
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import ray
from ray import serve

from srdd.devices import check_dtype, find_device
from srdd.errors import UserError
from srdd.generator import Generator
from srdd.load import load_pipeline
from srdd_platform.core.ray_session import session
from srdd_platform.core.runs import model_dir
from srdd_platform.serving.api import MAX_N
from srdd_platform.serving.deployment import (
    APPLICATION,
    DRAIN_S,
    ReplicaOptions,
    deploy,
    start,
)
from srdd_platform.serving.proxy import IN_PROGRESS

BATCHES_QUEUED = 8  # images inside a replica, in batches
READY_S = 60.0
POLL_S = 0.1
_EXCEPTION_CLASS = re.compile(r"^[\w.]*(Error|Exception): ")
CONTROLLER = "SERVE_CONTROLLER_ACTOR"  # Serve's own name for it


def run(
    pipeline_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    address: str | None = None,
    replicas: int = 1,
    max_batch: int = 32,
    device: str = "cpu",
    dtype: str = "float32",
    load: Callable[[str], Generator[Any]] = load_pipeline,
    ready: Callable[[str], None] | None = None,
    stopping: Callable[[], None] | None = None,
) -> None:
    """Serve a pipeline until SIGINT or SIGTERM, then finish the requests in progress.

    After the signal new requests are refused, and those in progress have ``DRAIN_S`` seconds. A
    second signal ends at once, in the exception that the signal raises elsewhere.

    Args:
        pipeline_dir: a pipeline directory, or the run directory that holds one.
        host: the interface to listen on.
        port: 0 chooses a free one.
        address: of a running Ray cluster; None starts a local one.
        replicas: copies of the model, each in a process (and on a GPU) of its own.
        max_batch: images that a replica advances together.
        device: ``cpu`` or ``cuda``.
        dtype: of the model's weights: float32, bfloat16 or float16.
        load: makes the generator of ``pipeline_dir``, here and in each replica.
        ready: called with the URL once ``/healthz`` answers 200.
        stopping: called after the signal, before the wait for the requests in progress.

    Raises:
        UserError: the port is taken, the directory holds no pipeline, a setting is wrong, the
            cluster is too small or serves something already.
    """
    local = pipeline_dir.exists()  # else it may be a Hugging Face id
    options = ReplicaOptions(
        pipeline=str(model_dir(pipeline_dir).resolve() if local else pipeline_dir),
        load=load,
        max_batch=max_batch,
        max_images=max(MAX_N, BATCHES_QUEUED * max_batch),
        device=device,
        dtype=dtype,
    )
    _check(options, replicas)
    if address is None:
        find_device(device)
    load(options.pipeline)  # refuse a damaged one here, in one line
    port = _free_port(host, port)
    with ExitStack() as quiet, session(address) as cluster:
        gpus = 0 if device == "cpu" else replicas
        cluster.require(cpus=replicas * options.threads, gpus=gpus)
        if _serving():
            raise UserError("Ray Serve already runs on this cluster: stop it or use another one")
        url = ""
        try:
            with until_signal():
                url = start(host, port)
                try:
                    deploy(options, replicas=replicas)
                except RuntimeError as error:
                    raise UserError(f"the model did not start: {_reason()}") from error
                _wait_healthy(url)
                if ready is not None:
                    ready(url)
                threading.Event().wait()
            if stopping is not None:
                stopping()
            _drain(url)
        finally:  # Ray reports, late, the end of Serve's controller as a failure
            quiet.enter_context(redirect_stdout(io.StringIO()))
            serve.shutdown()


def _drain(url: str) -> None:
    """Take no new requests, and wait for those in progress until DRAIN_S are over.

    Serve's own ``shutdown`` would end the replicas at once. ``delete`` lets them finish what they
    have, and the proxy is then given time to send it.
    """
    deadline = time.monotonic() + DRAIN_S
    if APPLICATION in serve.status().applications:  # else the signal came before
        serve.delete(APPLICATION)
    if not url:  # the signal came before Serve was there
        return
    with httpx.Client(trust_env=False, timeout=POLL_S * 10) as client:
        while requests_in_progress(client, url) and time.monotonic() < deadline:
            time.sleep(POLL_S)


def requests_in_progress(client: httpx.Client, url: str) -> bool:
    """Whether the proxy still has answers to send. One that is too busy to say so has some."""
    try:
        return bool(client.get(f"{url}{IN_PROGRESS}").json()["requests"])
    except httpx.TimeoutException:
        return True
    except httpx.HTTPError:  # it has ended
        return False


def _check(options: ReplicaOptions, replicas: int) -> None:
    """Refuse settings by name."""
    for name, value in (("--replicas", replicas), ("--max-batch", options.max_batch)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if options.device not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, got {options.device!r}")
    check_dtype(options.dtype)


def _free_port(host: str, port: int) -> int:
    """``port``, or a free one for 0.

    Raises:
        UserError: it is taken, or cannot be had.
    """
    if not 0 <= port < 65536:
        raise UserError(f"--port must lie in [0, 65535], got {port}")
    try:
        family, kind, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host} is not an address of this machine: give 127.0.0.1, or "
                            "0.0.0.0 for all of them") from None  # fmt: skip
        taken = error.errno == errno.EADDRINUSE
        what = "is taken" if taken else f"cannot be used ({error.strerror})"
        raise UserError(
            f"--port {port} {what} on {host}: give another one, or 0 for a free one"
        ) from None


def _serving() -> bool:
    """Whether Serve runs on the cluster."""
    names = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["name"] == CONTROLLER for actor in names)


def _reason() -> str:
    """Why no replica came up: the last line of its traceback, without the exception's class."""
    lines = ["no replica says why"]
    for deployment in serve.status().applications[APPLICATION].deployments.values():
        lines += [line.strip() for line in deployment.message.splitlines() if line.strip()]
    return _EXCEPTION_CLASS.sub("", lines[-1])


def _wait_healthy(url: str) -> None:
    """Wait until ``/healthz`` answers 200.

    Raises:
        UserError: it never does, from here.
    """
    deadline = time.monotonic() + READY_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < deadline:
            try:
                if client.get(f"{url}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise UserError(f"the model runs, but {url}/healthz does not answer from here")


class _Stop(BaseException):
    """A signal asked to end; like KeyboardInterrupt, nothing else may catch it."""


@contextmanager
def until_signal() -> Iterator[None]:
    """End the block quietly at the first SIGINT or SIGTERM; the next one acts as it did before.

    To be entered after Ray has started, which sets a handler of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def end(number: int, frame: FrameType | None) -> None:
        restore()
        raise _Stop

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, end)
    try:
        yield
    except _Stop:
        pass
    finally:
        restore()
