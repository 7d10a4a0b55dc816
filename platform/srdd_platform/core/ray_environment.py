"""What Ray reads by itself, made right before it starts: variables, directories, paths, the token.

A local Ray is the matter of one command. Variables that name a cluster are hidden from it, its
directory is one that it can use, and it has a token also where the home directory keeps none.
"""

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from srdd.errors import UserError
from srdd_platform.core.ray_internals import (
    generate_new_authentication_token,
    load_certs_from_env,
    ray_constants,
    reload_settings,
)

OF_CLUSTERS = ("RAY_ADDRESS", "RAY_REDIS_ADDRESS", "RAY_GCS_SERVER_PORT")
LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",  # never phone home
    "RAY_prestart_worker_first_driver": "false",  # a worker starts when there is work for it
    "RAY_gcs_server_port_wait_time_s": "120",  # Ray's 30 s are short on a loaded machine
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_niceness": "5",  # Ray's 15 starves training beside any other job
}
UNREADABLE = "'\\"  # Ray splits the command of its workers at quotes, and takes backslashes away
SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
PYTHON_SOCKET = "/pymp-12345678/listener-12345678"  # of the standard library's multiprocessing
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # the longest name of a Unix socket
SHARED_MEMORY = "/dev/shm"


@contextmanager
def changed(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables (None removes one) for the length of the block."""
    before = {name: os.environ.get(name) for name in values}
    _put(values)
    try:
        yield
    finally:
        _put(before)


def _put(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set variables that the user has not set, for the length of the block."""
    with changed({name: value for name, value in defaults.items() if name not in os.environ}):
        yield


@contextmanager
def authentication(token: str) -> Iterator[None]:
    """Let Ray use this token in this process and those that it starts, for the block; "" is none.

    All of them have the same one then, whatever happens to the file that keeps it.
    """
    mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with changed(mode if token else {"RAY_AUTH_MODE": "disabled"}):
        reload_settings()  # Ray itself does so when it sets a mode
        yield
    reload_settings()


def find_token() -> str:
    """The token that this user has (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, home); "" is none.

    Raises:
        UserError: it holds what no token can.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or token_file()
    if not token and path:
        with suppress(OSError):
            token = Path(path).read_bytes().decode("utf-8", "replace").strip()
    if not all("!" <= letter <= "~" for letter in token):
        raise UserError(
            f"{token_place()} holds characters that no token has: put in there what "
            "`ray get-auth-token` prints on the cluster's head, or remove it"
        )
    return token


def token_place() -> str:
    """Where Ray looks for the token first: a variable that is set, or the file in the home."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name, "").strip():
            return name
    return "~/.ray/auth_token"


def token_file() -> Path | None:
    """The file of the token in the home directory; None where there is no home."""
    if os.environ.get("HOME") == "":  # which Ray's parts understand differently
        return None
    with suppress(RuntimeError):
        return Path.home() / ".ray" / "auth_token"
    return None


def tokens_wanted() -> bool:
    """Whether a local Ray has a token: ``RAY_AUTH_MODE=disabled`` alone turns that off."""
    return os.environ.get("RAY_AUTH_MODE", "").strip().lower() != "disabled"


def local_token() -> tuple[str, bool]:
    """A token for a local Ray, and whether ``ray get-auth-token`` prints it.

    That is the user's own. Where there is none, one is made and kept in the home directory; where
    nothing can be written there, it serves this once.
    """
    if token := find_token():
        return token, True
    made = generate_new_authentication_token()
    path = token_file()
    if path and token_place().startswith("~"):
        with suppress(OSError):
            _keep(made, path)
        if token := find_token():  # or that of another command, which came first
            return token, True
    return made, False


def _keep(token: str, path: Path) -> None:
    """Write the token for this user alone, unless another process does so before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:
        file.write(token)
        file.flush()
        os.link(file.name, path)


def temp_dir(environ: Mapping[str, str]) -> str:
    """The directory of a local Ray's sessions: logs, sockets, objects that memory cannot hold.

    Ray's own choice is ``ray`` below RAY_TMPDIR, TMPDIR or ``/tmp``, whichever is set first. It is
    left for a short one where sockets could not have their names in it, or nothing be written.

    Raises:
        UserError: no directory will do.
    """
    wanted = environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or "/tmp"
    user = str(os.getuid())
    for directory in (
        os.path.join(os.path.abspath(wanted), "ray"), "/tmp/ray", f"/tmp/ray-{user}",
        f"/var/tmp/ray-{user}",
    ):  # fmt: skip
        if (
            len(os.fsencode(directory + SOCKET)) <= SOCKET_BYTES
            and not set(directory) & set(UNREADABLE)
            and directory.isprintable()
            and _writable(directory)
        ):
            return directory
    raise UserError(
        "a local Ray needs a directory for its files, and can write to none: set RAY_TMPDIR to "
        f"one whose path has at most {SOCKET_BYTES - len(SOCKET) - len('/ray')} bytes"
    )


def short_tmpdir(sessions: str) -> dict[str, str]:
    """TMPDIR of a local Ray's processes, which make sockets there too: another where it is long."""
    try:
        directory = tempfile.gettempdir()
    except FileNotFoundError:  # none can be written
        directory = ""
    fits = len(os.fsencode(directory + PYTHON_SOCKET)) <= SOCKET_BYTES
    return {} if directory and fits else {"TMPDIR": sessions}


def _writable(directory: str) -> bool:
    """Whether files can be made in a directory, which is made where it is missing."""
    try:
        os.makedirs(directory, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def objects_dir(sessions: str) -> str | None:
    """Where Ray's objects are kept; None leaves it to Ray, which prefers shared memory."""
    return None if sys.platform != "linux" or _writable(SHARED_MEMORY) else sessions


def check_paths() -> None:
    """Refuse an environment in which Ray would wait for its workers for ever.

    Raises:
        UserError: the path of the interpreter or of Ray cannot be handed to workers.
    """
    for path in (sys.executable, ray.__file__):
        if set(path) & set(UNREADABLE):
            raise UserError(
                f"Ray cannot start workers from {path}: its path holds ' or \\; move the Python "
                "environment to a folder without them"
            )


def certificates() -> tuple[bytes, bytes, bytes] | None:
    """Chain, key and authority of Ray's connections; None where RAY_USE_TLS does not ask for them.

    Raises:
        UserError: the variables that name them are not set, or a file cannot be read.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    try:
        chain, key, authority = load_certs_from_env()
    except RuntimeError as error:
        raise UserError(
            "RAY_USE_TLS is set, but not all of RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and "
            "RAY_TLS_CA_CERT: set them to the certificates of the cluster, or unset RAY_USE_TLS"
        ) from error
    except OSError as error:
        raise UserError(
            f"RAY_USE_TLS is set, but {error.filename} cannot be read ({error.strerror}): let the "
            "RAY_TLS_ variables name the certificates of the cluster, or unset RAY_USE_TLS"
        ) from error
    return chain, key, authority


def worker_settings(python: str) -> dict[str, Any]:
    """Ray's runtime environment for workers of the interpreter at this path.

    Ray hands the path to a shell as it is, so that one with a blank would be two words.
    """
    quoted = shlex.quote(python)
    return {} if quoted == python or not python else {"py_executable": quoted}


@contextmanager
def plain_interpreter() -> Iterator[None]:
    """Workers of a local Ray use this interpreter, also below ``uv run``, for the block.

    There Ray would copy the working directory to each worker, and run it in that copy.
    """
    before = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    try:
        yield
    finally:
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = before


def variables_set() -> str:
    """Names of Ray's variables that the user has set, for a message; "" for none."""
    ours = {*LOCAL, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_CLIENT_MODE"}  # or Ray's own
    return ", ".join(sorted(n for n in os.environ if n.startswith("RAY_") and n not in ours))
