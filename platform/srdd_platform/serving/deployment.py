"""The API as a Ray Serve deployment: replicas, metrics, and how they are started."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.metrics import Counter, Histogram

from srdd.devices import find_dtype
from srdd.generator import Generator
from srdd.load import load_pipeline
from srdd_platform.serving import proxy
from srdd_platform.serving.api import MAX_N, Outcome, Service, create_app
from srdd_platform.serving.engine import Engine

APPLICATION = "srdd"
DRAIN_S = 20.0  # from the signal to stop: for the requests in progress
SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaOptions:
    """What a replica draws with."""

    pipeline: str  # a directory that every node sees
    load: Callable[[str], Generator[Any]] = load_pipeline
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
class Replica:
    """A generator, warm, behind the API."""

    def __init__(self, options: ReplicaOptions) -> None:
        torch.set_num_threads(options.threads)
        engine = Engine(
            options.load(options.pipeline).to(options.device, find_dtype(options.dtype)),
            max_batch=options.max_batch,
            max_images=options.max_images,
            pad=options.device != "cpu",
        )
        engine.warm_up()
        self._images = Counter("srdd_images", description="Images drawn.")
        self._requests = Counter(
            "srdd_requests", description="Requests, by outcome.", tag_keys=("outcome",)
        )
        self._seconds = Counter(
            "srdd_request_phase_seconds",
            description="Seconds of finished requests in all, by phase.",
            tag_keys=("phase",),
        )
        self._spread = Histogram(  # Ray adds up the middles of its buckets: its sum is not right
            "srdd_request_seconds",
            description="Finished requests by their seconds and phase; do not use its sum.",
            boundaries=SECONDS,
            tag_keys=("phase",),
        )
        self.service = Service(engine, self._record)

    def _record(self, outcome: Outcome, images: int, seconds: dict[str, float]) -> None:
        for name, value in seconds.items():
            phase = {"phase": name.removesuffix("_s")}
            self._spread.observe(value, tags=phase)
            if value > 0:  # Ray refuses to add nothing
                self._seconds.inc(value, tags=phase)
        if outcome == "done":
            self._images.inc(images)
        self._requests.inc(tags={"outcome": outcome})

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
    deployment = Replica.options(  # type: ignore[attr-defined]
        num_replicas=replicas,
        # The engine itself refuses what is too much; Serve's own limit must lie beyond it.
        max_ongoing_requests=options.max_images + MAX_N,
        ray_actor_options={"num_cpus": options.threads, "num_gpus": gpus},
    )
    serve.run(deployment.bind(options), name=name, route_prefix=route_prefix)


def start(host: str, port: int) -> str:
    """Start Serve on the Ray that this process has joined; returns its URL."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        controller_options={"runtime_env": {"env_vars": proxy.VARIABLES}},
    )
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
