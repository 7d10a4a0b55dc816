"""Start or join a Ray cluster, quietly, and say where its dashboard is.

Three ways in::

    with session() as cluster:                     # a fresh local Ray, gone afterwards; inside
                                                   # `ray job submit` the cluster of the job
    with session("10.0.0.4:6379") as cluster:      # joins; leaves it running
    with session("auto") as cluster:               # the Ray that already runs on this machine

The dashboard of a local Ray listens on the loopback interface alone. Ray lets its pages ask once
for the token that it keeps in the home directory (``ray get-auth-token`` prints it), because its
other ports are open to the network; ``RAY_AUTH_MODE=disabled`` turns that off.
"""

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc  # type: ignore[import-untyped]
import ray

from srdd.errors import UserError

STARTS = 3  # a loaded machine can miss Ray's own start limit; the next try often succeeds
JOIN_TIMEOUT_S = 10.0
OBJECT_STORE_BYTES = 256 * 2**20  # rows and previews are small; images travel through files
OBJECT_STORE_VARIABLE = "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"  # Ray's own; it wins

_LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # never phone home
    "RAY_prestart_worker_first_driver": "false",  # a worker starts when there is work for it
    "RAY_gcs_server_port_wait_time_s": "120",  # Ray's 30 s are short on a loaded machine
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_niceness": "5",  # Ray's 15 starves training beside any other job
}
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows are our record
}
_INSIDE_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit` for the command it runs


_asked_to_end = threading.Event()


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM; raised in the main thread.

    Inside a call of Ray it comes out as a bare KeyboardInterrupt: :func:`terminated` tells.
    """


def terminated() -> bool:
    """Whether SIGTERM has come."""
    return _asked_to_end.is_set()


def end_on_sigterm() -> None:
    """Let the first SIGTERM end the program in order, as Ctrl-C does; later ones change nothing."""

    def handler(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _asked_to_end.set()
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        _asked_to_end.clear()
        signal.signal(signal.SIGTERM, handler)


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A connected cluster."""

    dashboard_url: str  # "" where the cluster runs none
    local: bool  # started here, so it ends with the session

    @property
    def total(self) -> dict[str, float]:
        """Resources of the nodes that are up, such as ``{"CPU": 8.0, "GPU": 1.0}``."""
        return dict(ray.cluster_resources())

    @property
    def free(self) -> dict[str, float]:
        """What of ``total`` nobody holds at this moment; a kind fully held is absent."""
        return dict(ray.available_resources())

    @property
    def nodes(self) -> list[dict[str, float]]:
        """What each node that is up has, whoever holds it."""
        return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]

    @property
    def free_nodes(self) -> list[dict[str, float]]:
        """What of ``nodes`` nobody holds at this moment; one worker needs all of its on one."""
        return [dict(node) for node in ray._private.state.available_resources_per_node().values()]

    @property
    def grows(self) -> bool:
        """Whether an autoscaler may start nodes."""
        return not self.local and bool(_autoscaler_limits())

    @property
    def capacity(self) -> dict[str, float]:
        """``total``, or more where the cluster's autoscaler may start nodes that are not up."""
        limits = _autoscaler_limits()
        total = self.total
        return {name: max(total.get(name, 0), limits.get(name, 0)) for name in total | limits}

    def require(self, *, cpus: float = 0, gpus: float = 0) -> None:
        """Refuse work that could wait for ever.

        Raises:
            UserError: the cluster cannot have that much, even with nobody else on it.
        """
        capacity = self.capacity
        have = {name: capacity.get(name, 0) for name in ("CPU", "GPU")}
        if cpus > have["CPU"] or gpus > have["GPU"]:
            free = {name: self.free.get(name, 0) for name in have}
            raise UserError(
                f"{_amount(cpus, gpus)} needed, but the Ray cluster has "
                f"{_amount(have['CPU'], have['GPU'])}, {_amount(free['CPU'], free['GPU'])} of them "
                "free: ask for less or join a larger cluster"
            )


@contextmanager
def session(address: str | None = None, num_cpus: int | None = None) -> Iterator[Session]:
    """Connect to Ray for the length of a ``with`` block.

    A Ray that this process has already joined is used as it is and stays up. Otherwise ``address``
    None starts a fresh local one, with its dashboard on the loopback interface; leaving the block,
    also by Ctrl-C or SIGTERM, shuts it down. An address is joined and left running.

    Args:
        address: ``host:port`` of a running cluster's head, or ``auto`` for one on this machine.
        num_cpus: CPUs a local Ray may use; None is all of them.

    Raises:
        UserError: nothing answers at ``address``, or the local Ray does not come up.
    """
    if ray.is_initialized():
        yield _describe(local=False)
        return
    if address is None and _INSIDE_JOB in os.environ:
        address = "auto"
    with environment(_ENVIRONMENT | (_LOCAL_ENVIRONMENT if address is None else {})):
        try:
            try:
                if address is None:
                    _start(num_cpus)
                else:
                    _join(address)
            except SystemExit:  # Ray's own answer to SIGTERM while it starts
                _asked_to_end.set()
                raise Terminated from None
            described = _describe(local=address is None)
            end_on_sigterm()  # Ray has put a handler of its own in
            yield described
        finally:
            ray.shutdown()


def _start(num_cpus: int | None) -> None:
    """Start a local Ray, trying again where the machine was too slow."""
    if num_cpus is not None and num_cpus < 1:
        raise UserError(f"a local Ray needs at least 1 CPU, got {num_cpus}")
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                object_store_memory=(
                    None if OBJECT_STORE_VARIABLE in os.environ else OBJECT_STORE_BYTES
                ),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises bare Exception where a part is late
            ray.shutdown()
            if type(error) is not Exception:
                raise
            if attempt == STARTS:
                raise UserError(
                    f"Ray did not start in {STARTS} tries: this machine is too busy, or short of "
                    "memory or disk"
                ) from error


def _join(address: str) -> None:
    """Join a running cluster, or say in seconds why not."""
    if address == "auto":  # as in Ray itself, the variable names the cluster
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address != "auto" and not re.fullmatch(r"[^/\s]+:\d+", address):
        raise UserError(
            f"{address!r} is no cluster address: give HOST:PORT of the head (port 6379 by "
            "default) on a machine of the cluster, or auto"
        )
    if address != "auto" and not _answers(address):
        raise UserError(f"no Ray cluster answers at {address}")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            raise UserError(
                "no Ray cluster runs on this machine: give --address HOST:PORT"
            ) from error
        reason = " ".join(str(error).split())
        raise UserError(f"cannot join the Ray cluster at {address}: {reason}") from error


def _answers(address: str) -> bool:
    """Whether a gRPC server listens; ``ray.init`` itself would retry for many minutes."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True  # the handshake needs the cluster's certificates: leave it to Ray
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=JOIN_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _describe(*, local: bool) -> Session:
    """The session of the Ray that this process is connected to."""
    url = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).dashboard_url
    return Session(dashboard_url=f"http://{url}" if url else "", local=local)


def _autoscaler_limits() -> dict[str, float]:
    """The most an autoscaling cluster may have of each resource; empty without an autoscaler."""
    return dict(ray._private.state.state.get_max_resources_from_cluster_config() or {})


def _amount(cpus: float, gpus: float) -> str:
    """``2 CPUs and 1 GPU``."""
    return f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"


@contextmanager
def environment(defaults: dict[str, str]) -> Iterator[None]:
    """Set variables that the user has not set, for the length of the block."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
