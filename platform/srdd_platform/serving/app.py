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
from types import FrameType
from typing import Any

import httpx
import ray
from ray import serve

from srdd.devices import find_device
from srdd.errors import UserError
from srdd.generator import Generator
from srdd.load import load_pipeline
from srdd_platform.core.ray_session import Session, session
from srdd_platform.core.runs import model_dir
from srdd_platform.serving.api import MAX_N
from srdd_platform.serving.deployment import (
    APPLICATION,
    DRAIN_S,
    ReplicaOptions,
    deploy,
    start,
)
from srdd_platform.serving.options import ServeOptions
from srdd_platform.serving.proxy import IN_PROGRESS

BATCHES_QUEUED = 8  # images inside a replica, in batches
READY_S = 60.0
POLL_S = 0.1
_EXCEPTION_CLASS = re.compile(r"^[\w.]*(Error|Exception): ")
CONTROLLER = "SERVE_CONTROLLER_ACTOR"  # Serve's own name for it


def run(
    options: ServeOptions,
    *,
    load: Callable[[str], Generator[Any]] = load_pipeline,
    ready: Callable[[str], object] = lambda url: None,
    stopping: Callable[[], object] = lambda: None,
) -> None:
    """Serve a generator until SIGINT or SIGTERM, then finish the requests in progress.

    After the signal new requests are refused, and those in progress have ``DRAIN_S`` seconds. A
    second signal ends at once, in the exception that the signal raises elsewhere.

    Args:
        options: what is served, where and with what.
        load: makes the generator of a directory, here and in each replica.
        ready: called with the URL once ``/healthz`` answers 200.
        stopping: called after the signal, before the wait for the requests in progress.

    Raises:
        UserError: the port is taken, the directory has no pipeline, the cluster is too small
            or serves something already.
    """
    replica = _checked(options, load)
    port = free_port(options.host, options.port)
    with ExitStack() as quiet, session(options.address) as cluster:
        _check_cluster(cluster, options, replica)
        url = ""
        try:
            with until_signal():
                url = start(options.host, port)
                _deploy(replica, options.replicas, url)
                ready(url)
                threading.Event().wait()
            stopping()
            _drain(url)
        finally:  # Ray reports, late, the end of Serve's controller as a failure
            quiet.enter_context(redirect_stdout(io.StringIO()))
            serve.shutdown()


def _checked(options: ServeOptions, load: Callable[[str], Generator[Any]]) -> ReplicaOptions:
    """What each replica is given, once the device is found and the pipeline loads here.

    Raises:
        UserError: there is no such device, or the pipeline is missing or damaged.
    """
    local = options.directory.exists()  # else it may be a Hugging Face id
    directory = str(model_dir(options.directory).resolve() if local else options.directory)
    if options.address is None:
        find_device(options.device)
    load(directory)
    return ReplicaOptions(
        pipeline=directory,
        load=load,
        max_batch=options.max_batch,
        max_images=max(MAX_N, BATCHES_QUEUED * options.max_batch),
        device=options.device,
        dtype=options.dtype,
    )


def _check_cluster(cluster: Session, options: ServeOptions, replica: ReplicaOptions) -> None:
    """Refuse a cluster without room for the replicas.

    Raises:
        UserError: it is too small, or serves something already.
    """
    gpus = 0 if options.device == "cpu" else options.replicas
    cluster.require(cpus=options.replicas * replica.threads, gpus=gpus)
    if _serving():
        raise UserError("Ray Serve already runs on this cluster: stop it or use another one")


def _deploy(replica: ReplicaOptions, replicas: int, url: str) -> None:
    """Start the replicas and wait until they answer.

    Raises:
        UserError: the model does not start, or no answer comes from here.
    """
    try:
        deploy(replica, replicas=replicas)
    except RuntimeError as error:
        raise UserError(f"the model did not start: {_reason()}") from error
    _wait_healthy(url)


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


def free_port(host: str, port: int) -> int:
    """``port``, or a free one for 0.

    Raises:
        UserError: it is taken, or cannot be had.
    """
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
