"""Atomic writes and run directories: what is on disk after an error, a signal, a second process."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from srdd.errors import UserError
from srdd_platform.core.file_errors import explain
from srdd_platform.core.files import (
    atomic_path,
    digest,
    read_json,
    sha256_file,
    write_bytes,
    write_json,
)

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}

FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from srdd_platform.core.files import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for path in sys.argv[1:]:
    try:
        write_bytes(Path(path), b"x" * 5000)
    except OSError as error:
        print(error.errno)
"""


def python(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, check=False, **options
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fail_in(path: Path, error: BaseException, *, directory: bool = False) -> None:
    with atomic_path(path, replace_directory=directory) as temporary:
        if directory:
            temporary.mkdir()
            (temporary / "part").write_text("new")
        else:
            temporary.write_text("new")
        raise error


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)):
        fail_in(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_an_error_leaves_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "part").write_text("old")
    with pytest.raises(ValueError, match="no"):
        fail_in(path, ValueError("no"), directory=True)
    assert (path / "part").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_an_error_before_anything_is_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"), atomic_path(tmp_path / "new"):
        raise ValueError("early")
    assert names(tmp_path) == []


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    for content in ("a", "b"):
        with atomic_path(path, replace_directory=True) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
            assert temporary.parent == path.parent  # one file system: the rename is atomic
    assert names(path) == ["b"]
    assert names(path.parent) == ["model"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    found = python(FULL_DISK, old, new)
    assert found.stdout.split() == [str(errno.EFBIG)] * 2, found.stderr
    assert names(tmp_path) == ["old"]
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("inside", "number", "named"),
    [
        (True, errno.EROFS, True),
        (True, errno.EACCES, True),
        (None, errno.ENOSPC, True),  # a write that fails names no file
        (None, errno.EIO, False),  # it may be a read of another file
        (False, errno.ENOENT, False),
    ],
)
def test_an_error_names_the_path_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool | None, number: int, named: bool
) -> None:
    """And not the temporary one; an error about another file keeps that file's name."""
    monkeypatch.chdir(tmp_path)
    if number == errno.EROFS:  # such a disk refuses to remove even what is not there
        monkeypatch.setattr(Path, "unlink", Mock(side_effect=OSError(number, "unlink", ".tmp")))
    other = None if inside is None else "elsewhere"

    def fail() -> None:
        with atomic_path(Path("out")) as temporary:
            place = str(temporary / "shard.tar") if inside else other
            raise OSError(number, "the system says", place)

    with pytest.raises(OSError, match="says") as found:
        fail()
    assert found.value.filename == ("out" if named else other)
    if named:
        assert "out" in str(explain(found.value))
        assert ".tmp" not in str(found.value)


def test_readers_see_the_old_file_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_json_keeps_the_order_of_keys_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": 1, "a": [0.1]})
    before = path.read_bytes()
    assert list(read_json(path)) == ["b", "a"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"b": math.nan})
    assert path.read_bytes() == before
    assert names(tmp_path) == ["value.json"]


@pytest.mark.parametrize("content", [b'{"a": 1', b"\xff\xfe\x00", b""])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"value\.json is not valid JSON"):
        read_json(path)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"value\.json does not exist"):
        read_json(tmp_path / "value.json")


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_digest_names_the_value_not_its_order() -> None:
    value = {"b": [1, {"y": 0.1, "x": None}], "a": "é"}
    turned = {"a": "é", "b": [1, {"x": None, "y": 0.1}]}
    assert digest(value) == digest(turned) == digest(json.loads(json.dumps(value)))
    assert len(digest(value)) == 16
    others = [{**value, "a": "e"}, {**value, "b": [{"y": 0.1, "x": None}, 1]}, [value]]
    assert len({digest(value), *map(digest, others)}) == 4


def test_killed_while_writing_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = """
import os, signal, sys
from pathlib import Path
from srdd_platform.core.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert python(code, path).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_a_full_directory_is_no_place_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "grid.png").mkdir()
    (tmp_path / "grid.png" / "note").write_text("mine")
    with pytest.raises(UserError, match="is a directory"):
        write_bytes(tmp_path / "grid.png", b"new")
    assert (tmp_path / "grid.png" / "note").read_text() == "mine"
