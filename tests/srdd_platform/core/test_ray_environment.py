"""What Ray reads by itself, made right before it starts.

Public reports: ray#7724 and #7945 (long temporary directories), #30959 (a home that cannot be
written), #5288 (blanks in paths), #59639 (`uv run`).
"""

import os
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray._private import ray_constants
from ray._private.utils import validate_socket_filepath

from srdd.errors import UserError
from srdd_platform.core import ray_environment as module
from srdd_platform.core.ray_environment import (
    changed,
    check_paths,
    environment,
    find_token,
    local_token,
    objects_dir,
    plain_interpreter,
    short_tmpdir,
    temp_dir,
    token_place,
    tokens_wanted,
    variables_set,
    worker_settings,
)


def test_variables_are_as_before_after_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRDD_A", "1")
    monkeypatch.delenv("SRDD_B", raising=False)
    before = dict(os.environ)
    with changed({"SRDD_A": None, "SRDD_B": "2"}), environment({"SRDD_B": "3", "SRDD_C": "4"}):
        assert "SRDD_A" not in os.environ
        assert os.environ["SRDD_B"] == "2"  # a choice stands before a default
        assert os.environ["SRDD_C"] == "4"
    assert dict(os.environ) == before


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home directory, and no variable that gives a token."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_local_ray_makes_the_users_token_once_and_for_the_user_alone(home: Path) -> None:
    assert find_token() == ""
    token, kept = local_token()
    path = home / ".ray" / "auth_token"
    assert kept
    assert path.read_text() == token
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert local_token() == (token, True)
    assert [entry.name for entry in path.parent.iterdir()] == ["auth_token"]


def test_commands_that_start_at_once_make_one_token(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / ".ray" / "auth_token"

    def meanwhile() -> str:
        path.parent.mkdir()
        path.write_text("a" * 64)
        return "b" * 64

    monkeypatch.setattr(module, "generate_new_authentication_token", meanwhile)
    assert local_token() == ("a" * 64, True)


@pytest.mark.parametrize("place", ["file", "device", "empty", "path", "folder", "no home"])
def test_where_no_token_can_be_kept_one_serves_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "file":  # as a home that cannot be written, which root can
        (home / ".ray").write_text("")
    elif place == "device":
        monkeypatch.setenv("HOME", "/dev/null")
    elif place == "empty":
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text("")
    elif place == "no home":
        monkeypatch.setenv("HOME", "")
    elif place == "path":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "none"))
    else:
        (home / ".ray" / "auth_token").mkdir(parents=True)
    before = sorted(home.rglob("*"))
    (one, kept), (two, _) = local_token(), local_token()
    assert not kept
    assert len(one) == len(two) == 64
    assert one != two
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [(None, True), ("", True), ("TOKEN", True), ("off", True), ("Disabled", False)],
)
def test_only_the_one_word_turns_tokens_off(
    monkeypatch: pytest.MonkeyPatch, mode: str | None, wanted: bool
) -> None:
    if mode is None:
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    else:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert tokens_wanted() is wanted


def test_a_token_is_read_where_ray_reads_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_place() == "~/.ray/auth_token"
    (home / "other").write_text("c" * 64 + "\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "other"))
    assert (find_token(), token_place()) == ("c" * 64, "RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "d" * 64)
    assert (find_token(), token_place()) == ("d" * 64, "RAY_AUTH_TOKEN")
    assert local_token() == ("d" * 64, True)


@pytest.mark.parametrize("token", ["tökén", "two words", "a\tb", "<html>\n<body>"])
def test_what_is_no_token_is_refused_with_its_place(
    home: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(UserError, match=r"^RAY_AUTH_TOKEN holds characters that no token has"):
        find_token()


def test_a_directory_that_ray_can_use_is_left_to_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    short = Path(os.path.realpath("/tmp")) / f"s{os.getpid()}"
    short.mkdir()
    try:
        assert temp_dir({"RAY_TMPDIR": str(short), "TMPDIR": "/nowhere"}) == f"{short}/ray"
        assert temp_dir({"TMPDIR": str(short)}) == f"{short}/ray"
        assert temp_dir({"RAY_TMPDIR": "", "TMPDIR": str(short)}) == f"{short}/ray"
    finally:
        (short / "ray").rmdir()
        short.rmdir()


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize(
    "directory",
    ["/tmp/" + "slurm_jobdir_12345678/" * 4, "/tmp/" + "é" * 20, "/proc/none", "/dev/null",
     "/tmp/it's", "/tmp/a\\b", "/tmp/a\nb"],
)  # fmt: skip
def test_a_directory_that_ray_cannot_use_is_left_for_a_short_one(name: str, directory: str) -> None:
    found = temp_dir({name: directory})
    assert found in ("/tmp/ray", f"/tmp/ray-{os.getuid()}")


@pytest.mark.parametrize(("length", "kept"), [(75, True), (76, False)])
def test_other_sockets_of_rays_processes_have_their_names_too(
    monkeypatch: pytest.MonkeyPatch, length: int, kept: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "a" * (length - 1))
    assert short_tmpdir("/tmp/ray") == ({} if kept else {"TMPDIR": "/tmp/ray"})


def test_where_nothing_can_be_written_the_variable_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_writable", lambda directory: False)
    with pytest.raises(UserError, match=r"to none: set RAY_TMPDIR to .* at most 3\d bytes"):
        temp_dir({})


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=60))
def test_sockets_have_their_names_in_any_directory_that_is_chosen(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_writable", lambda directory: True)
        directory = temp_dir({"TMPDIR": f"/{text}"})
    validate_socket_filepath(f"{directory}{module.SOCKET}")


@pytest.mark.parametrize("sound", [True, False])
def test_objects_leave_a_shared_memory_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sound: bool
) -> None:
    monkeypatch.setattr(module, "SHARED_MEMORY", str(tmp_path) if sound else "/dev/null/shm")
    assert objects_dir("/tmp/ray") == (None if sound else "/tmp/ray")


@pytest.mark.parametrize("folder", ["it's mine", "back\\slash"])
def test_an_environment_whose_workers_cannot_start_is_refused(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    path = f"/opt/{folder}/.venv/bin/python"
    monkeypatch.setattr(sys, "executable", path)
    with pytest.raises(UserError) as caught:
        check_paths()
    assert str(caught.value).startswith(f"Ray cannot start workers from {path}: ")


@pytest.mark.parametrize("folder", ["my work", "a&b;c", "a$HOME", "é日本", "(x) [y] *", 'say "x"'])
def test_an_interpreter_below_any_other_folder_is_found_by_a_shell(
    tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    python = tmp_path / folder / "python"
    python.symlink_to("/bin/echo")
    command = worker_settings(str(python)).get("py_executable", str(python))
    said = subprocess.run(["bash", "-c", f"exec {command} found"], capture_output=True, text=True)
    assert said.stdout == "found\n"


def test_a_plain_interpreter_needs_no_setting() -> None:
    assert worker_settings("/usr/bin/python3.11") == {}
    assert worker_settings("") == {}
    assert shlex.split(worker_settings("/a b/python")["py_executable"]) == ["/a b/python"]


def test_below_uv_run_workers_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", True)
    with plain_interpreter():
        assert not ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV
    assert ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV


def test_variables_of_rays_that_the_user_set_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    assert variables_set() == ""
    for name in ("RAY_OVERRIDE_RESOURCES", "RAY_AUTH_TOKEN", "RAY_HOOK"):
        monkeypatch.setenv(name, "x")
    assert variables_set() == "RAY_HOOK, RAY_OVERRIDE_RESOURCES"
