"""Writes that are whole or absent: a temporary file beside the target, then a rename."""

import codecs
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from srdd import json_files
from srdd.errors import UserError
from srdd_platform.core.file_errors import is_full


@contextmanager
def atomic_path(path: Path, *, replace_directory: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place on success.

    On any error, a full disk included, the temporary path is removed and ``path`` stays as it was;
    an error of the operating system names ``path``, not the temporary one.

    Args:
        path: the file or directory to make.
        replace_directory: whether a directory of that name may go.

    Raises:
        UserError: ``path`` is a directory with files in it that may not go.
    """
    given, path = path, path.resolve()
    if path.is_dir() and any(path.iterdir()) and not replace_directory:
        raise UserError(f"{path} is a directory; give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        if path.is_dir():  # a full directory cannot be replaced in one step: move it aside
            aside = temporary.with_suffix(".old")
            os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside)
        else:
            os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and _concerns(error, temporary):
            error.filename, error.filename2 = str(given), None
        _remove(temporary)
        raise


def _remove(temporary: Path) -> None:
    """Remove what is left of a temporary path, if that can be done; the first error counts."""
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        with suppress(OSError):  # a read-only disk refuses this too
            temporary.unlink(missing_ok=True)


def _concerns(error: OSError, temporary: Path) -> bool:
    """Whether an error is about a temporary path; a write to a full disk names no file."""
    if error.filename is None:
        return is_full(error)
    return Path(os.fsdecode(error.filename)).is_relative_to(temporary)


def can_write(directory: Path) -> bool:
    """Whether files could be made in a directory, which need not exist yet. Nothing is written."""
    place = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` atomically and durably (fsync before the rename)."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_once(path: Path, data: bytes) -> bool:
    """Write ``data`` atomically where nothing is yet; returns whether it was written.

    Of several writers one wins; a file that is there stays byte for byte.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        write_bytes(temporary, data)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        _remove(temporary)
    return True


def to_json_bytes(value: Any) -> bytes:
    """``value`` as JSON, keys in their order; NaN is refused."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON atomically; NaN is refused, keys keep their order."""
    write_bytes(path, to_json_bytes(value))


def read_text(path: Path) -> str:
    """Read text in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        UserError: the file is missing, or no such text; the message names it.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory: give a file") from None
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or is not JSON; the message names it.
    """
    try:
        return json_files.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """16 hex digits that name a JSON-serialisable value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
