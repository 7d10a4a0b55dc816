"""Missing rows: which they are, that each is made once, and that Ray makes lost ones again."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srdd.errors import UserError
from srdd_platform.core.files import read_json
from srdd_platform.core.ray_session import Session
from srdd_platform.evaluation.rows import row_path
from srdd_platform.evaluation.runner import Make, make_rows, missing, run_missing

ITEMS = [(number, f"k{number}") for number in range(6)]

Load = Callable[[], Make[int]]


def recorder(log: Path, *, deadly: tuple[int, ...] = (), wrong: tuple[int, ...] = ()) -> Load:
    """What makes rows of numbers and writes down each call.

    Args:
        log: one line a call.
        deadly: numbers whose first row ends the process.
        wrong: numbers that have no row.
    """

    def note(text: str) -> None:
        with log.open("a") as file:
            file.write(f"{text}\n")

    def load() -> Make[int]:
        note("load")

        def make(number: int, key: str) -> dict[str, Any]:
            note(key)
            if number in wrong:
                raise UserError(f"{number} has no row")
            if number in deadly and log.read_text().split().count(key) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return {"key": key, "square": number**2, "process": os.getpid()}

        return make

    return load


def rows(directory: Path) -> dict[str, Any]:
    return {path.stem: read_json(path) for path in (directory / "rows").iterdir()}


def test_what_has_no_row_is_missing(tmp_path: Path) -> None:
    assert missing(tmp_path, ITEMS) == ITEMS
    for key in ("k1", "k4", "other"):
        path = row_path(tmp_path, key)
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    assert missing(tmp_path, ITEMS) == [ITEMS[0], ITEMS[2], ITEMS[3], ITEMS[5]]


def test_only_missing_rows_are_made_and_none_is_written_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make_rows(tmp_path, ITEMS[2:4], recorder(log))
    row_path(tmp_path, "k3").write_text("kept as it is")
    make_rows(tmp_path, ITEMS, recorder(log))
    assert log.read_text().split() == ["load", "k2", "k3", "load", "k0", "k1", "k4", "k5"]
    assert row_path(tmp_path, "k3").read_text() == "kept as it is"
    assert read_json(row_path(tmp_path, "k5"))["square"] == 25
    make_rows(tmp_path, ITEMS, recorder(log))  # nothing is missing, so nothing is loaded
    assert log.read_text().split().count("load") == 2


def test_no_ray_is_needed_where_nothing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = recorder(tmp_path / "log")
    make_rows(tmp_path, ITEMS, load)
    monkeypatch.setattr("ray.remote", None)
    run_missing(tmp_path, ITEMS, load, name="squares", device="cpu", threads=1)
    assert (tmp_path / "log").read_text().split().count("load") == 1


def test_a_row_that_another_wrote_meanwhile_stays(tmp_path: Path) -> None:
    def load() -> Make[int]:
        def make(number: int, key: str) -> dict[str, Any]:
            row_path(tmp_path, key).parent.mkdir(exist_ok=True)
            row_path(tmp_path, key).write_text("the other's")
            return {"key": key}

        return make

    make_rows(tmp_path, ITEMS[:1], load)
    assert row_path(tmp_path, "k0").read_text() == "the other's"


def test_rows_before_a_wrong_one_are_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 has no row"):
        make_rows(tmp_path, ITEMS, recorder(tmp_path / "log", wrong=(2,)))
    assert sorted(rows(tmp_path)) == ["k0", "k1"]


@pytest.mark.ray
def test_a_killed_worker_s_rows_are_made_again(tmp_path: Path, ray_session: Session) -> None:
    """Two tasks; the one with k0, k2 and k4 dies at k2. Its k0 is on disk, and is not made anew."""
    log = tmp_path / "log"
    run_missing(
        tmp_path, ITEMS, recorder(log, deadly=(2,)), name="squares", device="cpu", threads=1,
        slots=2,
    )  # fmt: skip
    found = rows(tmp_path)
    assert {key: row["square"] for key, row in found.items()} == {
        key: number**2 for number, key in ITEMS
    }
    assert Counter(log.read_text().split()) == {
        "load": 3, "k0": 1, "k2": 2, "k4": 1, "k1": 1, "k3": 1, "k5": 1,
    }  # fmt: skip
    processes = [found[f"k{number}"]["process"] for number in range(6)]
    assert processes[2] == processes[4] != processes[0]
    assert processes[1] == processes[3] == processes[5]
    assert os.getpid() not in processes


@pytest.mark.ray
def test_an_error_in_a_task_has_its_message(
    tmp_path: Path, ray_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the directory is given from another folder than Ray's."""
    monkeypatch.chdir(tmp_path)
    load = recorder(tmp_path / "log", wrong=(1,))
    with pytest.raises(UserError, match="1 has no row"):
        run_missing(Path("here"), ITEMS[:2], load, name="squares", device="cpu", threads=1)
    assert sorted(rows(tmp_path / "here")) == ["k0"]
