"""The API under Ray Serve: deployment, metrics, start and stop."""

import io
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.util.metrics import Counter, Histogram

from srdd.errors import UserError
from srdd.pipeline import load_pipeline
from srdd_platform.ray_session import session
from srdd_platform.runs import model_dir
from srdd_platform.serving.api import MAX_N, Outcome, Service, create_app
from srdd_platform.serving.engine import Engine

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
APPLICATION = "srdd"
BATCHES_QUEUED = 8  # images inside a replica, in batches
DRAIN_S = 20.0  # a stopping replica's time for the requests it has
READY_S = 60.0
SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]
CONTROLLER = "SERVE_CONTROLLER_ACTOR"  # Serve's own name for it


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaOptions:
    """What a replica draws with."""

    pipeline: str  # a directory that every node sees
    max_batch: int = 32
    max_images: int = 256  # inside the replica; beyond it a request is answered 503
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1  # torch's, on the CPU


def _build_app() -> FastAPI:
    """Called on the replica, after its constructor."""
    return create_app(lambda: serve.get_replica_context().servable_object.service)


@serve.deployment(
    name="generator",
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=DRAIN_S,
    health_check_period_s=5,
)
@serve.ingress(_build_app)
class Generator:
    """A replica: a pipeline, warm, behind the API."""

    def __init__(self, options: ReplicaOptions) -> None:
        torch.set_num_threads(options.threads)
        pipeline = load_pipeline(options.pipeline).to(options.device, DTYPES[options.dtype])
        engine = Engine(
            pipeline,
            max_batch=options.max_batch,
            max_images=options.max_images,
            pad=options.device != "cpu",
        )
        engine.warm_up()
        self._images = Counter("srdd_images", description="Images drawn.")
        self._requests = Counter(
            "srdd_requests", description="Requests, by outcome.", tag_keys=("outcome",)
        )
        self._seconds = Histogram(
            "srdd_request_seconds",
            description="Seconds of finished requests, by phase.",
            boundaries=SECONDS,
            tag_keys=("phase",),
        )
        self.service = Service(pipeline, engine, self._record)

    def _record(self, outcome: Outcome, images: int, seconds: dict[str, float]) -> None:
        self._requests.inc(tags={"outcome": outcome})
        if outcome == "done":
            self._images.inc(images)
        for phase, value in seconds.items():
            self._seconds.observe(value, tags={"phase": phase.removesuffix("_s")})

    async def check_health(self) -> None:
        """Ray restarts a replica whose step loop has ended."""
        self.service.engine.check()

    async def __del__(self) -> None:
        await self.service.engine.close()


def deploy(
    options: ReplicaOptions, *, replicas: int = 1, name: str = APPLICATION, route_prefix: str = "/"
) -> None:
    """Deploy a pipeline on the Serve that runs, and wait until it is warm."""
    gpus = 0 if options.device == "cpu" else 1
    deployment = Generator.options(  # type: ignore[attr-defined]
        num_replicas=replicas,
        # The engine itself refuses what is too much; Serve's own limit must lie beyond it.
        max_ongoing_requests=options.max_images + MAX_N,
        ray_actor_options={"num_cpus": options.threads, "num_gpus": gpus},
    )
    serve.run(deployment.bind(options), name=name, route_prefix=route_prefix)


def start(host: str, port: int) -> str:
    """Start Serve on the Ray that this process has joined; returns its URL."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


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
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a pipeline until SIGINT or SIGTERM.

    Args:
        pipeline_dir: a pipeline directory, or the run directory that holds one.
        host: the interface to listen on.
        port: 0 chooses a free one.
        address: of a running Ray cluster; None starts a local one.
        replicas: copies of the model, each in a process (and on a GPU) of its own.
        max_batch: images that a replica advances together.
        device: ``cpu`` or ``cuda``.
        dtype: of the transformer's weights: float32, bfloat16 or float16.
        ready: called with the URL once ``/healthz`` answers 200.

    Raises:
        UserError: the port is taken, the directory holds no pipeline, a setting is wrong, the
            cluster is too small or serves something already.
    """
    local = pipeline_dir.exists()  # else it may be a Hugging Face id
    options = ReplicaOptions(
        pipeline=str(model_dir(pipeline_dir).resolve() if local else pipeline_dir),
        max_batch=max_batch,
        max_images=max(MAX_N, BATCHES_QUEUED * max_batch),
        device=device,
        dtype=dtype,
    )
    _check(options, replicas)
    load_pipeline(options.pipeline)  # refuse a damaged one here, in one line
    port = _free_port(host, port)
    with ExitStack() as quiet, session(address) as cluster, _stopped_by_signals():
        gpus = 0 if device == "cpu" else replicas
        cluster.require(cpus=replicas * options.threads, gpus=gpus)
        if _serving():
            raise UserError("Ray Serve already runs on this cluster: stop it or use another one")
        try:
            url = start(host, port)
            try:
                deploy(options, replicas=replicas)
            except RuntimeError as error:
                raise UserError(f"the model did not start: {_reason()}") from error
            _wait_healthy(url)
            if ready is not None:
                ready(url)
            threading.Event().wait()
        finally:  # Ray reports, late, the end of Serve's controller as a failure
            quiet.enter_context(redirect_stdout(io.StringIO()))
            serve.shutdown()


def _check(options: ReplicaOptions, replicas: int) -> None:
    """Refuse settings by name."""
    for name, value in (("replicas", replicas), ("max_batch", options.max_batch)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if options.device not in ("cpu", "cuda"):
        raise UserError(f"device must be cpu or cuda, got {options.device!r}")
    if options.dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {options.dtype!r}")


def _free_port(host: str, port: int) -> int:
    """``port``, or a free one for 0.

    Raises:
        UserError: it is taken, or cannot be had.
    """
    if not 0 <= port < 65536:
        raise UserError(f"port must lie in [0, 65535], got {port}")
    try:
        family, kind, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen on {host}:{port} ({reason}): give another port") from None


def _serving() -> bool:
    """Whether Serve runs on the cluster."""
    names = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["name"] == CONTROLLER for actor in names)


def _reason() -> str:
    """Why no replica came up: the last line of its traceback."""
    lines = ["no replica says why"]
    for deployment in serve.status().applications[APPLICATION].deployments.values():
        lines += [line.strip() for line in deployment.message.splitlines() if line.strip()]
    return lines[-1]


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
def _stopped_by_signals() -> Iterator[None]:
    """End the block quietly at the first SIGINT or SIGTERM; a second one interrupts the ending.

    To be entered after Ray has started, which sets a handler of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise _Stop

    before: dict[int, Any] = {
        number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    except _Stop:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
