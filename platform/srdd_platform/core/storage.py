"""Where a run's checkpoints lie: in its directory, or on any filesystem that pyarrow opens.

::

    step_000050/                      state.pt, manifest.json
    checkpoint_manager_snapshot.json  Ray's record of the checkpoints that are whole

Ray's record alone says which checkpoints count. Ray rewrites it in place, which a full disk or a
kill would leave torn, so local files go through a filesystem that writes beside and renames; an
object store does so by itself.
"""

import io
import os
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from srdd.errors import UserError
from srdd.json_files import parse_json
from srdd_platform.core.location import Location, parse_location

ANSWER_S = 30.0  # for a filesystem that does not answer; clients themselves try for many minutes
SNAPSHOT = "checkpoint_manager_snapshot.json"
T = TypeVar("T")
_DENIED = "access is denied: check the credentials in the environment"
_AWS = {  # what pyarrow's S3 says, and what it means
    "NETWORK_CONNECTION": "the store cannot be reached: check the network and AWS_ENDPOINT_URL",
    "NO_SUCH_BUCKET": "there is no such bucket: check its name",
    "ACCESS_DENIED": _DENIED,
    "INVALID_ACCESS_KEY_ID": _DENIED,
    "SIGNATURE_DOES_NOT_MATCH": _DENIED,
}


class _Beside(io.BufferedWriter):
    """A file written beside its place, which it takes when it is closed whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._torn = path, False
        self._temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        super().__init__(io.FileIO(self._temporary, "wb"))

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BaseException:
            self._torn = True
            raise

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.flush()
            os.fsync(self.fileno())
        except BaseException:
            self._torn = True
            raise
        finally:
            self.raw.close()
            if self._torn:
                self._temporary.unlink(missing_ok=True)
            else:
                os.replace(self._temporary, self._path)


class WholeFiles(LocalFileSystem):  # type: ignore[misc]
    """The local filesystem; a file that is written appears whole or not at all."""

    def __eq__(self, other: object) -> bool:  # fsspec's own differs from thread to thread
        return isinstance(other, WholeFiles)

    def __hash__(self) -> int:
        return hash(WholeFiles)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """Open a file."""
        if mode == "wb":
            return _Beside(Path(path))
        return super().open(path, mode, **options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """A directory of checkpoints."""

    filesystem: fs.FileSystem
    root: str  # the directory's path there
    name: str  # the same for a person
    local: bool

    def path(self, checkpoint: str) -> str:
        """Where a checkpoint of that name lies."""
        return f"{self.root}/{checkpoint}"

    def read_json(self, name: str) -> Any:
        """A JSON file below the directory; None where there is none.

        Raises:
            UserError: it cannot be read.
        """
        path = f"{self.root}/{name}"

        def read() -> Any:
            if self.filesystem.get_file_info(path).type == fs.FileType.NotFound:
                return None
            with self.filesystem.open_input_stream(path) as stream:
                return parse_json(stream.read(), f"{self.name}/{name}")

        return answered(f"cannot read {self.name}/{name}", read)

    def registered(self) -> list[str]:
        """Names of the checkpoints that Ray holds whole, the newest last."""
        found = self.read_json(SNAPSHOT) or {}
        return [each["checkpoint_dir_name"] for each in found.get("checkpoint_results", [])]

    def check(self) -> None:
        """Write, read and remove a small file.

        Raises:
            UserError: that cannot be done, or nothing answers; one line says why.
        """
        path = f"{self.root}/.probe"

        def probe() -> None:
            self.filesystem.create_dir(self.root)
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(b"srdd")
            with self.filesystem.open_input_stream(path) as stream:
                if stream.read() != b"srdd":
                    raise OSError("what was written is not what is read")
            self.filesystem.delete_file(path)

        answered(f"cannot keep checkpoints in {self.name}", probe)

    def prune(self) -> None:
        """Remove what a killed run left: checkpoints that it had no time to register."""
        keep = set(self.registered())

        def remove() -> None:
            selector = fs.FileSelector(self.root, allow_not_found=True)
            for found in self.filesystem.get_file_info(selector):
                if re.fullmatch(r"step_\d+|\.step_\d+\..*", found.base_name):
                    if found.base_name not in keep:
                        self.filesystem.delete_dir(found.path)

        answered(f"cannot clear {self.name}", remove)


def open_store_at(location: Location, what: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a location that is a URI, and its path there.

    Args:
        location: a URI.
        what: begins the message of an error.

    Raises:
        UserError: pyarrow cannot open it, or nothing answers.
    """
    filesystem, root = answered(what, lambda: fs.FileSystem.from_uri(str(location)))
    return filesystem, root.rstrip("/")


def open_storage(run: str, location: str) -> Storage:
    """The storage of a run's checkpoints.

    Args:
        run: the run directory.
        location: what ``--checkpoints`` gives, or "" for the run directory's own.

    Raises:
        UserError: it is not a location, or pyarrow cannot open it.
    """
    if not location:
        return _local(Path(run) / "checkpoints")
    place = parse_location(location, "--checkpoints")
    if place.local is not None:
        return _local(place.local)
    filesystem, root = open_store_at(place, f"--checkpoints {location} cannot be opened")
    if "/" not in root.strip("/"):
        raise UserError(f"--checkpoints {location} names no folder: give {place / 'NAME'}")
    return Storage(filesystem=filesystem, root=root, name=str(place), local=False)


def _local(directory: Path) -> Storage:
    handler = fs.FSSpecHandler(WholeFiles())
    return Storage(
        filesystem=fs.PyFileSystem(handler), root=str(directory), name=str(directory), local=True
    )


def answered(what: str, action: Callable[[], T], limit_s: float = ANSWER_S) -> T:
    """What an action on a filesystem returns.

    Raises:
        UserError: it failed, or did not return in time; one line without credentials.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def act() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=act, daemon=True)  # one that hangs must not keep us
    thread.start()
    thread.join(limit_s)
    if results:
        return results[0]
    if not errors:
        raise UserError(f"{what}: no answer in {limit_s:g} s: check the location and the network")
    if not from_store(errors[0]):
        raise errors[0]
    raise UserError(f"{what}: {store_says(errors[0])}") from None


def from_store(error: BaseException) -> bool:
    """Whether a filesystem of pyarrow raised an error, and no bug of ours.

    The libraries behind fsspec (of Hugging Face, for one) pass on errors of the HTTP clients that
    they use, which share no base class with OSError.
    """
    if isinstance(error, OSError | ValueError | NotImplementedError):
        return True
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, Exception) and library not in ("builtins", "srdd", "srdd_platform")


def store_says(error: BaseException) -> str:
    """Why a filesystem of pyarrow did not do something: one line, without credentials."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, PermissionError):
        return "access is denied: check its owner and mode, or the credentials in the environment"
    text = " ".join(str(error).split())
    aws = re.search(r"AWS Error (\w+)", text)
    if aws is not None and aws[1] in _AWS:
        return _AWS[aws[1]]
    text = re.sub(r"//[^/@\s]*@", "//***@", text)
    text = re.sub(r"^\[Errno -?\d+\] ", "", text)
    text = re.sub(r"\.? Detail: \[errno \d+\].*", "", text)[:200]
    if not isinstance(error, OSError | ValueError | NotImplementedError):  # of an HTTP client
        text = f"{text or type(error).__name__}: check the location and the network"
    return text
