import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import ray
from ray.job_submission import JobSubmissionClient

from srdd.errors import UserError
from srdd_platform.core import ray_address, ray_environment
from srdd_platform.core import ray_session as module
from srdd_platform.core.interrupts import Terminated
from srdd_platform.core.ray_session import Session, session

GIVEN = "the token that `ray get-auth-token` prints"


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Ray replaced by a recorder; ``failures`` are raised by the next starts, one each.

    What it is told to say goes to the standard error by its number, as its C++ parts do.
    """
    fake = SimpleNamespace(up=False, starts=[], environments=[], failures=[], says=b"", nodes=[])

    def init(**options: Any) -> None:
        fake.starts.append(options)
        fake.environments.append(dict(os.environ))
        os.write(2, fake.says)
        if fake.failures:
            raise fake.failures.pop(0)
        fake.up = True

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: setattr(fake, "up", False))
    monkeypatch.setattr(ray, "is_initialized", lambda: fake.up)
    monkeypatch.setattr(ray, "nodes", lambda: fake.nodes)
    monkeypatch.setattr(ray._private.worker, "get_dashboard_url", lambda: "127.0.0.1:8265")
    monkeypatch.setattr(ray_environment, "reload_settings", lambda: None)  # a real one may be up
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return fake


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address is one of a cluster without tokens."""
    monkeypatch.setattr(ray_address, "_ask", lambda *_: (grpc.StatusCode.OK, ""))


def test_a_slow_start_is_tried_again(fake_ray: SimpleNamespace) -> None:
    fake_ray.failures = [
        Exception("The current node timed out during startup. This could happen because"),
        Exception("\ndashboard.py: [<SubprocessModuleHandle>] are late"),
    ]
    with session(num_cpus=2) as cluster:
        assert fake_ray.up
        assert cluster == Session(dashboard_url="http://127.0.0.1:8265", local=True, token=GIVEN)
    assert len(fake_ray.starts) == 3
    assert not fake_ray.up


def test_a_start_that_never_succeeds_is_given_up(fake_ray: SimpleNamespace) -> None:
    fake_ray.failures = [Exception("late") for _ in range(9)]
    with pytest.raises(UserError, match=r"3 tries.*/session_latest/logs$"), session():
        pytest.fail("entered without a cluster")
    assert len(fake_ray.starts) == 3


def test_another_failure_is_not_retried(fake_ray: SimpleNamespace) -> None:
    fake_ray.failures = [OSError(errno.ENOSPC, "No space left on device")]
    with pytest.raises(OSError, match="No space left"), session():
        pytest.fail("entered without a cluster")
    assert len(fake_ray.starts) == 1


def test_an_interrupt_shuts_a_local_ray_down(fake_ray: SimpleNamespace) -> None:
    def interrupted() -> None:
        with session():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not fake_ray.up


def test_a_running_ray_is_reused_and_left_up(fake_ray: SimpleNamespace) -> None:
    fake_ray.up = True
    with session() as cluster:
        assert not cluster.local
    assert fake_ray.up
    assert not fake_ray.starts


def test_inside_a_ray_job_the_cluster_of_the_job_is_joined(
    fake_ray: SimpleNamespace, answered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # as `ray job submit` sets them
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.4:6379")
    with session() as cluster:
        assert not cluster.local
    assert [options["address"] for options in fake_ray.starts] == ["10.0.0.4:6379"]


def test_sigterm_ends_a_session_in_order_and_once(fake_ray: SimpleNamespace) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Terminated), session():
            os.kill(os.getpid(), signal.SIGTERM)
        assert not fake_ray.up
        os.kill(os.getpid(), signal.SIGTERM)  # impatience does not break what is being cleared up
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_local_start_is_small_private_and_leaves_no_trace(
    fake_ray: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "11")
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")  # ray#35010
    monkeypatch.setenv("RAY_REDIS_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv(module.OBJECT_STORE_VARIABLE, raising=False)
    before = dict(os.environ)
    with session():
        pass
    (options,), (seen,) = fake_ray.starts, fake_ray.environments
    assert options["address"] == "local"  # never a cluster that RAY_ADDRESS happens to name
    assert not {"RAY_ADDRESS", "RAY_REDIS_ADDRESS"} & set(seen)
    assert seen["RAY_AUTH_MODE"] == "token"
    assert seen["RAY_AUTH_TOKEN"] == "a" * 64  # that of all its processes, whatever a file says
    assert options["dashboard_host"] == "127.0.0.1"
    assert options["object_store_memory"] == 256 * 2**20
    assert seen["RAY_USAGE_STATS_ENABLED"] == "0"
    assert seen["RAY_worker_niceness"] == "11"  # the user's own choice stands
    assert dict(os.environ) == before


def test_the_object_store_is_the_users_to_size(
    fake_ray: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(module.OBJECT_STORE_VARIABLE, str(2**30))
    with session():
        assert fake_ray.starts[0]["object_store_memory"] is None


@pytest.mark.parametrize("by_variable", [False, True])
def test_an_address_where_nothing_answers_is_refused(
    fake_ray: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    named = r" \(RAY_ADDRESS\): set it to" if by_variable else ": give"
    with (
        pytest.raises(UserError, match=rf"^no Ray cluster answers at 127\.0\.0\.1:1{named} HOST"),
        session("auto" if by_variable else "127.0.0.1:1"),
    ):
        pytest.fail("joined nothing")
    assert not fake_ray.starts  # Ray itself would have tried for minutes


@pytest.mark.usefixtures("answered")
def test_a_refusal_by_ray_is_one_line(fake_ray: SimpleNamespace) -> None:
    fake_ray.failures = [RuntimeError("Version mismatch:\n  Ray: 2.55\n  Python: 3.12")]
    with pytest.raises(UserError) as caught, session("head:6379"):
        pytest.fail("joined nothing")
    assert str(caught.value).startswith(
        "cannot join the Ray cluster at head:6379: Version mismatch: Ray: 2.55 Python: 3.12"
    )
    assert "\n" not in str(caught.value)


def test_a_variable_that_ray_cannot_read_is_named(
    fake_ray: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ROTATION_MAX_BYTES", "abc")
    fake_ray.failures = [ValueError("invalid literal for int() with base 10: 'abc'")]
    with pytest.raises(
        UserError, match=r"^Ray did not start: 'abc' is not a number; .*RAY_ROTATION_MAX_BYTES"
    ):
        with session():
            pytest.fail("entered without a cluster")
    assert len(fake_ray.starts) == 1


def test_encryption_without_certificates_is_refused_before_a_start(
    fake_ray: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_SERVER_CERT", "/nowhere")
    with (
        pytest.raises(UserError, match=r"^RAY_USE_TLS is set, but .*RAY_TLS_SERVER_KEY"),
        session(),
    ):
        pytest.fail("started")
    for name in ("RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"):
        monkeypatch.setenv(name, "/nowhere")
    with pytest.raises(UserError, match=r"^RAY_USE_TLS is set, but .*/nowhere"), session():
        pytest.fail("started")
    assert not fake_ray.starts


@pytest.mark.usefixtures("answered")
def test_auto_leaves_a_local_ray_again_whose_processes_it_did_not_see(
    fake_ray: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a process may have no command line for a moment; its node has the mark."""
    monkeypatch.setattr(ray_address, "_found", lambda: "10.0.0.1:6379")
    fake_ray.nodes = [{"Labels": {"srdd-private": "true"}}]
    with pytest.raises(UserError, match="no Ray cluster runs on this machine"), session("auto"):
        pytest.fail("entered another command's Ray")
    assert not fake_ray.up
    with session("10.0.0.1:6379") as cluster:  # a person asked for it
        assert not cluster.local
    fake_ray.nodes = [{"Labels": {}}]
    with session("auto") as cluster:
        assert not cluster.local


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize("address", [None, "head:6379"])
def test_what_ray_writes_while_it_starts_stays_off_the_terminal(
    fake_ray: SimpleNamespace, capfd: pytest.CaptureFixture[str], address: str | None
) -> None:
    fake_ray.says = b"[W 1 1] gcs_client.cc:210: Failed to get cluster ID\n"
    with session(address):
        os.write(2, b"a program's own\n")
    assert capfd.readouterr().err == "a program's own\n"


@pytest.mark.parametrize("num_cpus", [0, -2])
def test_a_ray_without_cpus_is_refused(fake_ray: SimpleNamespace, num_cpus: int) -> None:
    with pytest.raises(UserError, match=f"at least 1 CPU, got {num_cpus}"), session(None, num_cpus):
        pytest.fail("started")


def test_workers_that_an_autoscaler_may_start_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.5})
    cluster = Session(dashboard_url="", local=False)
    monkeypatch.setattr(module, "autoscaler_limits", lambda: {})
    with pytest.raises(
        UserError,
        match=r"^0 CPUs and 1 GPU needed, but the Ray cluster has 4 CPUs and 0 GPUs, "
        r"1.5 CPUs and 0 GPUs of them free: ask for less",
    ):
        cluster.require(gpus=1)
    assert not cluster.grows
    monkeypatch.setattr(module, "autoscaler_limits", lambda: {"CPU": 2, "GPU": 4})
    assert cluster.grows
    cluster.require(cpus=4, gpus=4)
    with pytest.raises(UserError, match="5 GPUs needed"):
        cluster.require(gpus=5)


@pytest.mark.ray
def test_the_cluster_says_what_it_has(ray_session: Session) -> None:
    assert ray_session.dashboard_url.startswith("http://127.0.0.1:")
    assert ray_session.total["CPU"] == 2
    ray_session.require(cpus=2)
    with pytest.raises(UserError, match="3 CPUs and 0 GPUs needed, but the Ray cluster has 2 CPUs"):
        ray_session.require(cpus=3)


@pytest.mark.ray
def test_another_process_joins_and_leaves_the_cluster_up(ray_session: Session) -> None:
    address = ray.get_runtime_context().gcs_address
    code = (
        "import sys; from srdd_platform.core.ray_session import session\n"
        "with session(sys.argv[1]) as s: print(s.local, s.total['CPU'], s.dashboard_url)"
    )
    joined = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, check=True
    )
    assert joined.stdout.split() == ["False", "2.0", ray_session.dashboard_url]
    assert ray_session.total["CPU"] == 2


@pytest.mark.slow  # Ray's agent, which takes jobs, may stay away where two processes run tests
@pytest.mark.ray
def test_a_submitted_job_joins_the_cluster_it_runs_on(ray_session: Session) -> None:
    code = (
        "from srdd_platform.core.ray_session import session\n"
        "with session() as s: print('found', s.local, s.total['CPU'])"
    )
    client = JobSubmissionClient(ray_session.dashboard_url)

    def submit() -> str:
        return client.submit_job(
            entrypoint=shlex.join([sys.executable, "-c", code]),
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
        )

    job = ""
    last = time.monotonic() + 60
    while not job:
        try:
            job = submit()
        except RuntimeError as error:  # a node's agent may come up after the node
            if "No available agent" not in str(error) or time.monotonic() > last:
                raise
            time.sleep(0.5)
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.1)
    assert "found False 2.0" in client.get_job_logs(job)
