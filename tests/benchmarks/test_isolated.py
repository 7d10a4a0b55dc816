"""Functions in processes of their own: what they send is kept however they end."""

import importlib
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.isolated import Outcome, run, warm_up

LONG_S = 60.0
Ended = tuple[list[Any], Outcome, str]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a function of ``ends.py``; what it sent, how it ended, and what it printed."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    ends = importlib.import_module("ends")
    warm_up(["benchmarks.gpu_results"])  # which the functions' module imports

    def call(name: str, *arguments: Any, limit_s: float = LONG_S, on_item: Any = None) -> Ended:
        sent: list[Any] = []
        log = tmp_path / "log"
        outcome = run(
            getattr(ends, name),
            arguments,
            limit_s=limit_s,
            log=log,
            on_item=on_item or sent.append,
        )
        return sent, outcome, log.read_text() if log.exists() else ""

    return call


def test_what_a_function_tells_arrives_in_order(call: Any) -> None:
    sent, outcome, log = call("sends", 300)
    assert sent == list(range(300))
    assert (outcome.status, outcome.message, log) == ("ok", "", "printed\n")


def test_an_exception_is_one_line_and_its_stack_is_in_the_log(call: Any) -> None:
    sent, outcome, log = call("fails")
    assert sent == ["before"]
    assert (outcome.status, outcome.message) == ("failed", "ValueError: the first line")
    assert "Traceback" in log
    assert "the second" in log


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("aborts", (), "its process died of SIGABRT"),
        ("is_killed", (), "its process died of SIGKILL (out of memory?)"),
        ("leaves", (3,), "its process ended with status 3 before its work was done"),
        ("leaves", (0,), "its process ended with status 0 before its work was done"),
        ("sends_what_cannot_be_pickled", (), "AttributeError: Can't "),
    ],
)
def test_a_crash_keeps_what_was_told(call: Any, name: str, arguments: Any, message: str) -> None:
    sent, outcome, _ = call(name, *arguments)
    assert sent == ["before"]
    assert outcome.status == "failed"
    assert outcome.message.startswith(message)


def test_a_function_that_ended_well_may_hang_when_it_is_taken_down(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.isolated._ENDING_S", 0.5)
    sent, outcome, _ = call("ends_slowly")
    assert (sent, outcome.status) == (["before"], "ok")


def test_a_listener_that_fails_leaves_no_process(call: Any) -> None:
    def on_item(_what: Any) -> None:
        raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        call("hangs", on_item=on_item)
    assert set(multiprocessing.active_children()) == before
