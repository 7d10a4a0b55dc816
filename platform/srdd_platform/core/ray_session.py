"""Start or join a Ray cluster, quietly, and say where its dashboard is.

Three ways in::

    with session() as cluster:                     # a fresh local Ray, gone afterwards; inside
                                                   # `ray job submit` the cluster of the job
    with session("10.0.0.4:6379") as cluster:      # joins; leaves it running
    with session("auto") as cluster:               # the Ray that already runs on this machine

The dashboard of a local Ray listens on the loopback interface alone. Ray lets its pages ask once
for a token, because its other ports are open to the network; ``RAY_AUTH_MODE=disabled`` turns that
off. What Ray reads by itself is prepared in :mod:`~srdd_platform.core.ray_environment`;
:mod:`~srdd_platform.core.ray_address` finds the cluster that an address means.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from srdd.errors import UserError
from srdd_platform.core.interrupts import end_on_sigterm
from srdd_platform.core.ray_address import (
    NONE_HERE,
    PRIVATE,
    Target,
    interpreter,
    locate,
    wanted_token,
)
from srdd_platform.core.ray_environment import (
    LOCAL,
    OF_CLUSTERS,
    authentication,
    certificates,
    changed,
    check_paths,
    environment,
    local_token,
    objects_dir,
    plain_interpreter,
    short_tmpdir,
    temp_dir,
    tokens_wanted,
    variables_set,
    worker_settings,
)
from srdd_platform.core.ray_internals import autoscaler_limits, dashboard_address, free_by_node
from srdd_platform.core.ray_output import quiet
from srdd_platform.core.ray_processes import own_process_groups

STARTS = 3  # a loaded machine can miss Ray's own start limit; the next try often succeeds
OBJECT_STORE_BYTES = 256 * 2**20  # rows and previews are small; images travel through files
OBJECT_STORE_VARIABLE = "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"  # Ray's own; it wins

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows are our record
}
_INSIDE_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit` for the command it runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A connected cluster."""

    dashboard_url: str  # "" where the cluster runs none
    local: bool  # started here, so it ends with the session
    token: str = ""  # the token that the dashboard's pages ask for: where a person finds it

    @property
    def dashboard(self) -> str:
        """What to say of the dashboard; "" where the cluster runs none."""
        if not self.dashboard_url:
            return ""
        hint = f" (it asks once for {self.token})" if self.token else ""
        return f"Ray dashboard: {self.dashboard_url}{hint}"

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
        return free_by_node()

    @property
    def grows(self) -> bool:
        """Whether an autoscaler may start nodes."""
        return not self.local and bool(autoscaler_limits())

    @property
    def capacity(self) -> dict[str, float]:
        """``total``, or more where the cluster's autoscaler may start nodes that are not up."""
        limits = autoscaler_limits()
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
        address: ``host:port`` of a running cluster's head, or ``auto`` for the one that
            RAY_ADDRESS names, else for one on this machine.
        num_cpus: CPUs a local Ray may use; None is all of them.

    Raises:
        UserError: the cluster cannot be joined, or the local Ray does not come up.
    """
    if ray.is_initialized():
        yield Session(dashboard_url=_dashboard_url(), local=False)
        return
    if address is None and _INSIDE_JOB in os.environ:
        address = "auto"
    opened = _local(num_cpus) if address is None else _joined(address)
    with environment(_ENVIRONMENT), opened as cluster:
        end_on_sigterm()  # Ray has put a handler of its own in
        yield cluster


@contextmanager
def _local(num_cpus: int | None) -> Iterator[Session]:
    """Start a Ray, and shut it down."""
    if num_cpus is not None and num_cpus < 1:
        raise UserError(f"a local Ray needs at least 1 CPU, got {num_cpus}")
    check_paths()
    certificates()  # Ray's parts would end one by one without them
    token, kept = local_token() if tokens_wanted() else ("", True)
    where = "the token that `ray get-auth-token` prints"
    if not kept:
        where = "a token, which you choose by RAY_AUTH_TOKEN before the start"
    sessions = temp_dir(os.environ)
    with (
        changed(dict.fromkeys(OF_CLUSTERS) | short_tmpdir(sessions)),
        environment(LOCAL),
        authentication(token),
        plain_interpreter(),
    ):
        try:
            _start(num_cpus, sessions)
            yield Session(dashboard_url=_dashboard_url(), local=True, token=where if token else "")
        finally:
            ray.shutdown()


def _start(num_cpus: int | None, sessions: str) -> None:
    """Start a local Ray, trying again where the machine was too slow."""
    for attempt in range(1, STARTS + 1):
        try:
            with quiet(), own_process_groups():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=True,
                    dashboard_host="127.0.0.1",
                    object_store_memory=(
                        None if OBJECT_STORE_VARIABLE in os.environ else OBJECT_STORE_BYTES
                    ),
                    labels={PRIVATE: "true"},
                    runtime_env=worker_settings(sys.executable),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=sessions,
                    _plasma_directory=objects_dir(sessions),
                )
            return
        except Exception as error:  # Ray raises bare Exception where a part is late
            ray.shutdown()
            if isinstance(error, OSError) and error.errno:
                raise
            if type(error) is not Exception:
                raise UserError(f"Ray did not start: {_why(error)}") from error
            if attempt == STARTS:
                raise UserError(
                    f"Ray did not start in {STARTS} tries: this machine is too busy, or short of "
                    f"memory or disk; Ray's logs are in {sessions}/session_latest/logs"
                ) from error


@contextmanager
def _joined(address: str) -> Iterator[Session]:
    """Join a running cluster, or say in seconds why not; leave it running."""
    target = locate(address)
    token = wanted_token(target)
    where = "the token that `ray get-auth-token` prints on its head" if token else ""
    with authentication(token):
        try:
            _join(target)
            if target.found and any(PRIVATE in node["Labels"] for node in ray.nodes()):
                raise UserError(NONE_HERE)  # another command's local Ray, of unseen processes
            yield Session(dashboard_url=_dashboard_url(), local=False, token=where)
        finally:
            ray.shutdown()


def _join(target: Target) -> None:
    """Join a cluster that answers."""
    try:
        with quiet():
            ray.init(
                address=target.address,
                runtime_env=worker_settings(interpreter(target)),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:
        raise UserError(f"cannot join the Ray cluster at {target}: {_why(error)}") from error


def _why(error: Exception) -> str:
    """What Ray says, in one line, and which of its variables the user has set."""
    reason = " ".join(str(error).split()) or "it gives no reason"
    if reason.startswith("invalid literal for int()"):  # Ray reads numbers where it is imported
        reason = f"{reason.rpartition(': ')[2]} is not a number"
    names = variables_set()
    return f"{reason}; Ray reads these variables, which are set: {names}" if names else reason


def _dashboard_url() -> str:
    """The dashboard of the Ray that this process is connected to; "" where it runs none."""
    address = dashboard_address()
    return f"http://{address}" if address else ""


def _amount(cpus: float, gpus: float) -> str:
    """``2 CPUs and 1 GPU``."""
    return f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"
