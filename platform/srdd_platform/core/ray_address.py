"""Which Ray cluster an address means, whether it answers, and whether it wants a token."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import psutil

from srdd.errors import UserError
from srdd_platform.core.ray_environment import certificates, find_token, token_place
from srdd_platform.core.ray_internals import (
    CheckAliveRequest,
    NodeInfoGcsServiceStub,
    canonicalize_bootstrap_address,
    ray_constants,
    read_ray_address,
)

ANSWER_S = 10.0
PRIVATE = "srdd-private"  # a label of the node: a local Ray of one command, which nobody joins
HEAD = "HOST:PORT of the cluster's head (port 6379 by default)"
_ADDRESS = re.compile(r"(\[?)([A-Za-z0-9_.:%-]+)(\]?):([0-9]{1,5})")
_OTHERS = {
    "http": "is the dashboard's address, which only `ray job submit` takes",
    "https": "is the dashboard's address, which only `ray job submit` takes",
    "ray": "is for Ray Client, which cannot run trainings",
}
NONE_HERE = (
    "no Ray cluster runs on this machine: start one with `ray start --head`, give --address "
    f"{HEAD}, or leave --address out for a local Ray"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Raylet:
    """A Ray node on this machine, as the command line of its process says."""

    address: str  # host:port of its cluster's head
    private: bool  # a local Ray that belongs to one command
    python: str  # interpreter of its workers


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A cluster to join."""

    address: str  # host:port of its head
    name: str  # the option or variable that named it: --address or RAY_ADDRESS
    found: bool = field(default=False, compare=False)  # on this machine; nobody gave its address

    @property
    def remedy(self) -> str:
        """What a person can do where it cannot be joined."""
        if self.name == "RAY_ADDRESS":
            return f"set it to {HEAD}, or unset it"
        return f"give {HEAD}, or leave --address out for a local Ray"

    def __str__(self) -> str:
        return self.address if self.name == "--address" else f"{self.address} ({self.name})"


def raylets() -> Iterator[Raylet]:
    """The Ray nodes on this machine whose processes can be seen."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if Path(command[0]).name == "raylet":
            options = dict(
                part.removeprefix("--").split("=", 1) for part in command[1:] if "=" in part
            )
            yield Raylet(
                address=options.get("gcs-address", ""),
                private=f'"{PRIVATE}"' in options.get("labels", ""),
                python=_interpreter(options.get("python_worker_command", "")),
            )


def _interpreter(command: str) -> str:
    """The first word of a command, which Ray puts in double quotes where it has blanks."""
    found = re.match(r'"([^"]*)"|(\S*)', command)
    return (found[1] or found[2] or "") if found else ""


def locate(address: str) -> Target:
    """The cluster that the user means.

    Args:
        address: what ``--address`` says. ``auto`` is the cluster that RAY_ADDRESS names, else the
            one that runs on this machine; other commands' local Rays do not count.

    Raises:
        UserError: it is not the address of a cluster, or none or several run on this machine.
    """
    address = address.strip()
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if address != "auto":
        return parse(address, "--address")
    if named not in ("", "auto"):
        return parse(named, "RAY_ADDRESS")
    return Target(address=_found(), name="--address", found=True)


def parse(text: str, name: str) -> Target:
    """The cluster of an address HOST:PORT, IPv6 in brackets.

    Args:
        text: what the user gave.
        name: by which option or variable.

    Raises:
        UserError: it has another form.
    """
    match = _ADDRESS.fullmatch(text)
    if match and bool(match[1]) == bool(match[3]) and 0 < int(match[4]) < 65536:
        host = f"[{match[2]}]" if ":" in match[2] else match[2]
        return Target(address=f"{host}:{match[4]}", name=name)
    scheme, separator, _ = text.partition("://")
    what = _OTHERS.get(scheme.lower()) if separator else None
    raise UserError(
        f"{name} {text!r} {what or 'is not the address of a Ray cluster'}: "
        f"{Target(address=text, name=name).remedy}"
    )


def _found() -> str:
    """The cluster on this machine: the one that `ray start` began last, or the only one.

    Raises:
        UserError: there is none, or it cannot be told which.
    """
    seen = list(raylets())
    public = sorted({raylet.address for raylet in seen if not raylet.private})
    latest = read_ray_address() or ""
    if latest in public:
        return latest
    if len(public) > 1:
        raise UserError(
            f"{len(public)} Ray clusters run on this machine: give --address with one of "
            f"{', '.join(public)}"
        )
    if public:
        return public[0]
    # The head may run where its processes cannot be seen, as beside this container.
    if latest and latest not in {raylet.address for raylet in seen} and _ask(latest)[0] in (
        grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED,
    ):  # fmt: skip
        return latest
    raise UserError(NONE_HERE)


def interpreter(target: Target) -> str:
    """The interpreter of a cluster's workers on this machine; "" where its node cannot be seen."""
    joined = canonicalize_bootstrap_address(target.address)
    return next((raylet.python for raylet in raylets() if raylet.address == joined), "")


def wanted_token(target: Target) -> str:
    """The token to join a cluster with; "" where it wants none.

    Ray itself decides by this process's variables and files alone: a driver with a token then
    starts no actor in a cluster without, and one without waits for long in a cluster with them.

    Raises:
        UserError: nothing or something else answers, or the cluster does not take the token.
    """
    code, details = _ask(target.address)
    if code == grpc.StatusCode.OK:
        return ""
    if code == grpc.StatusCode.UNIMPLEMENTED:
        raise UserError(
            f"what answers at {target} is not the head of a Ray cluster: {target.remedy}"
        )
    if code != grpc.StatusCode.UNAUTHENTICATED:
        if "errors resolving" in details:
            raise UserError(f"no machine has the name in {target}: {target.remedy}")
        raise UserError(f"no Ray cluster answers at {target}: {target.remedy}")
    how = (
        "set RAY_AUTH_TOKEN to what `ray get-auth-token` prints on the cluster's head, or copy "
        "its ~/.ray/auth_token"
    )
    token = find_token()
    if not token:
        place = token_place()
        none = "none is here" if place.startswith("~") else f"{place} holds none"
        raise UserError(f"the Ray cluster at {target} wants a token, and {none}: {how}")
    if _ask(target.address, token)[0] != grpc.StatusCode.OK:
        raise UserError(
            f"the Ray cluster at {target} does not take the token of {token_place()}: {how}"
        )
    return token


def _ask(address: str, token: str = "") -> tuple[grpc.StatusCode, str]:
    """What the head of a cluster says to a call, and why.

    Ray itself would try for many minutes where nothing answers, and ends the process then.
    """
    target = canonicalize_bootstrap_address(address)  # Ray joins 127.0.0.1 by another address
    header = [("authorization", f"Bearer {token}")] if token else None
    try:
        with _channel(target) as channel:
            call = NodeInfoGcsServiceStub(channel).CheckAlive
            call(CheckAliveRequest(), timeout=ANSWER_S, metadata=header)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def _channel(address: str) -> grpc.Channel:
    """A channel as Ray opens it: past proxies, encrypted where RAY_USE_TLS is set."""
    options = ray_constants.GLOBAL_GRPC_OPTIONS
    found = certificates()
    if found is None:
        return grpc.insecure_channel(address, options)
    chain, key, authority = found
    return grpc.secure_channel(
        address, grpc.ssl_channel_credentials(authority, key, chain), options
    )
