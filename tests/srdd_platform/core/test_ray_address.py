"""Which cluster an address means, and what a cluster that answers wants.

Public reports: ray#35010 and #21592 (RAY_ADDRESS for `ray job submit`), #64755 and #66248 (tokens),
#6744 and #14350 (proxies).
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.core.generated.gcs_service_pb2 import CheckAliveReply
from ray.core.generated.gcs_service_pb2_grpc import (
    NodeInfoGcsServiceServicer,
    add_NodeInfoGcsServiceServicer_to_server,
)

from srdd.errors import UserError
from srdd_platform.core import ray_address as module
from srdd_platform.core.ray_address import Target, interpreter, locate, parse, wanted_token

TOKEN = "b" * 64


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of Ray's, no cluster on this machine; Ray takes addresses as they are."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(module, "canonicalize_bootstrap_address", lambda address: address)
    monkeypatch.setattr(module, "read_ray_address", lambda: None)
    monkeypatch.setattr(module, "raylets", lambda: iter(()))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.4:6379", "10.0.0.4:6379"),
        (" head.cluster:6379\n", "head.cluster:6379"),
        ("my_head:1", "my_head:1"),
        ("[::1]:6379", "[::1]:6379"),
        ("fd00::4:6379", "[fd00::4]:6379"),
    ],
)
@pytest.mark.parametrize("variable", [False, True])
def test_an_address_is_a_host_and_a_port(
    monkeypatch: pytest.MonkeyPatch, text: str, found: str, variable: bool
) -> None:
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", text)
    target = locate("auto" if variable else text)
    assert target == Target(address=found, name="RAY_ADDRESS" if variable else "--address")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is not the address"),
        ("head", "is not the address"),
        ("local", "is not the address"),
        ("head:0", "is not the address"),
        ("head:70000", "is not the address"),
        ("head:٦٣٧٩", "is not the address"),  # digits, but not of an address
        ("[::1:6379", "is not the address"),
        ("head:6379/x", "is not the address"),
        ("redis://head:6379", "is not the address"),
        ("http://head:8265", "the dashboard's address, which only `ray job submit` takes"),
        ("HTTPS://head", "the dashboard's address, which only `ray job submit` takes"),
        ("ray://head:10001", "for Ray Client, which cannot run trainings"),
    ],
)
def test_an_address_of_another_form_is_refused_by_the_name_it_was_given_by(
    monkeypatch: pytest.MonkeyPatch, text: str, what: str
) -> None:
    with pytest.raises(UserError, match=r"HOST:PORT.*or leave --address out") as option:
        locate(text)
    assert str(option.value).startswith(f"--address {text!r} is")
    assert what in str(option.value)
    if text:
        monkeypatch.setenv("RAY_ADDRESS", text)
        with pytest.raises(UserError, match=r"set it to HOST:PORT.*or unset it$") as variable:
            locate("auto")
        assert str(variable.value).startswith(f"RAY_ADDRESS {text!r} is")


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=9) | st.from_regex(r"\A[a-z:/\[\]]{0,6}:[0-9]{1,6}\Z"))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        host, port = parse(text, "--address").address.rsplit(":", 1)
    except UserError:
        return
    assert host
    assert 0 < int(port) < 65536


def raylet(address: str, *, private: bool = False, python: str = "/usr/bin/python3") -> Any:
    """A process of `psutil.process_iter` as Ray starts it."""
    labels = json.dumps({"srdd-private": "true"} if private else {"zone": "srdd-private-not"})
    worker = subprocess.list2cmdline([python, "default_worker.py", f"--gcs-address={address}"])
    command = [
        "/env/lib/ray/core/src/ray/raylet/raylet", "--head", f"--gcs-address={address}",
        f"--python_worker_command={worker}",
        f"--labels={labels}",
    ]  # fmt: skip
    return SimpleNamespace(info={"cmdline": command})


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let this machine run processes, and `ray start` have begun the cluster ``latest`` last."""

    def run(*found: Any, latest: str | None = None) -> None:
        others = [SimpleNamespace(info={"cmdline": line}) for line in (None, [], ["python", "x=y"])]
        monkeypatch.undo()
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(module, "canonicalize_bootstrap_address", lambda address: address)
        monkeypatch.setattr(psutil, "process_iter", lambda attrs: iter([*others, *found]))
        monkeypatch.setattr(module, "read_ray_address", lambda: latest)

    return run


@pytest.mark.parametrize("variable", ["", "  ", "auto"])
def test_auto_joins_the_cluster_of_this_machine(
    processes: Callable[..., None], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    processes(raylet("10.0.0.1:6379"), raylet("10.0.0.1:4000", private=True))
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert locate("auto").address == "10.0.0.1:6379"


def test_auto_never_joins_the_local_ray_of_another_command(
    processes: Callable[..., None],
) -> None:
    private = raylet("10.0.0.1:4000", private=True)
    for latest in (None, "10.0.0.1:4000"):  # `ray start` may have had its port before
        processes(private, latest=latest)
        with pytest.raises(UserError, match=r"^no Ray cluster runs on this machine: start one"):
            locate("auto")


def test_auto_joins_the_latest_of_several_clusters(processes: Callable[..., None]) -> None:
    two = raylet("10.0.0.1:6379"), raylet("10.0.0.1:6380")
    processes(*two, latest="10.0.0.1:6380")
    assert locate("auto").address == "10.0.0.1:6380"
    processes(*two, latest="10.0.0.1:1")  # it ended
    with pytest.raises(UserError, match=r"2 Ray clusters.*10.0.0.1:6379, 10.0.0.1:6380$"):
        locate("auto")


@pytest.mark.parametrize("folder", ["env", "my work", "it's", "it's mine", "a\\b"])
def test_the_interpreter_of_a_cluster_is_that_of_its_node_here(
    processes: Callable[..., None], folder: str
) -> None:
    processes(raylet("10.0.0.1:6379", python=f"/opt/{folder}/bin/python"))
    assert interpreter(parse("10.0.0.1:6379", "--address")) == f"/opt/{folder}/bin/python"
    assert interpreter(parse("10.0.0.1:6380", "--address")) == ""


class Head(NodeInfoGcsServiceServicer):  # type: ignore[misc]
    """A head that wants a token, or none ("")."""

    token = ""

    def CheckAlive(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if self.token and ("authorization", f"Bearer {self.token}") not in tuple(
            context.invocation_metadata()
        ):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return CheckAliveReply()


@pytest.fixture
def head() -> Iterator[SimpleNamespace]:
    """A head on the loopback interface: its service and its address."""
    service = Head()
    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeInfoGcsServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield SimpleNamespace(service=service, target=parse(f"127.0.0.1:{port}", "--address"))
    server.stop(None)


def test_a_cluster_without_tokens_is_joined_without_one(
    head: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # with it a driver starts no actor there
    assert wanted_token(head.target) == ""


def test_a_cluster_with_tokens_is_joined_with_the_users_own(
    head: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    head.service.token = TOKEN
    for mode in ("", "token", "disabled"):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        assert wanted_token(head.target) == TOKEN


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"RAY_AUTH_TOKEN": "c" * 64}, "does not take the token of RAY_AUTH_TOKEN: set"),
        ({"RAY_AUTH_TOKEN": "", "HOME": "{tmp}"}, "wants a token, and none is here: set"),
        (
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "{tmp}/none"},
            "wants a token, and RAY_AUTH_TOKEN_PATH holds none: set",
        ),
    ],
)
def test_a_missing_or_wrong_token_is_said_at_once_and_how_to_give_it(
    head: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Any,
    variables: dict[str, str], why: str,
) -> None:  # fmt: skip
    head.service.token = TOKEN
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("{tmp}", str(tmp_path)))
    with pytest.raises(UserError) as caught:
        wanted_token(head.target)
    assert why in str(caught.value)
    assert "RAY_AUTH_TOKEN to what `ray get-auth-token` prints" in str(caught.value)


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"])
def test_a_cluster_is_asked_past_a_proxy(
    head: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert wanted_token(head.target) == ""


def test_another_server_is_no_head() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(UserError, match="is not the head of a Ray cluster: give HOST:PORT"):
        wanted_token(parse(f"127.0.0.1:{port}", "--address"))
    server.stop(None)


def test_a_name_that_no_machine_has_is_said() -> None:
    with pytest.raises(UserError, match=r"^no machine has the name in head\.invalid:6379: give"):
        wanted_token(parse("head.invalid:6379", "--address"))


def test_encryption_without_certificates_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with pytest.raises(UserError, match=r"^RAY_USE_TLS is set, but .*RAY_TLS_SERVER_CERT"):
        wanted_token(parse("127.0.0.1:1", "--address"))
