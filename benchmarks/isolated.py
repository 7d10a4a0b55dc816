"""One function in a process of its own, which may fail, hang or crash and takes nothing along.

The processes come from a fork server that has imported torch once and never touched a device, so
that a start costs a fraction of a second and CUDA starts afresh in each.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "failed", "timed out"]
Send = Callable[[Any], None]
_CONTEXT = multiprocessing.get_context("forkserver")
_TICK_S = 0.5  # how often a process that says nothing is looked at
_ENDING_S = 5.0  # for a process that has sent its end to leave


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a function ended."""

    status: Status
    message: str  # one line; empty where it is ok
    seconds: float


@dataclass(frozen=True, slots=True)
class _End:
    message: str | None  # None: the function returned


def warm_up(preload: Sequence[str]) -> None:
    """Start the fork server, which imports some modules; the main module must not be among them.

    Without it the first process waits until its own imports are done.
    """
    _CONTEXT.set_forkserver_preload(list(preload))
    process = _CONTEXT.Process(target=_nothing)
    process.start()
    process.join()


def _nothing() -> None:
    """The first process, which there is nothing to wait for."""


def run(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    limit_s: float,
    log: Path,
    on_item: Send,
) -> Outcome:
    """Call ``function(*arguments, send)`` in a process and hand on what it sends, as it sends it.

    Args:
        function: of a module, by whose name the process finds it.
        arguments: pickled.
        limit_s: seconds from its start after which the process and its own processes are killed.
        log: file to which all that it prints is appended; a function that is killed for the time
            it took leaves its stack there.
        on_item: called here for each item sent.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_call, args=(function, arguments, sender, str(log), limit_s))
    began = time.monotonic()
    end: _End | None = None
    try:
        process.start()
        began = time.monotonic()
        sender.close()
        while end is None and (left := began + limit_s - time.monotonic()) > 0:
            if not receiver.poll(min(left, _TICK_S)):
                if process.is_alive() or receiver.poll(0):
                    continue
                break
            try:
                item = receiver.recv()
            except EOFError:
                break
            if isinstance(item, _End):
                end = item
            else:
                on_item(item)
        if end is not None or time.monotonic() < began + limit_s:
            process.join(_ENDING_S)
        died = process.exitcode
    finally:
        if process.pid is not None:  # else a signal came while it was being started
            _kill(process)
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while end is None and receiver.poll(0):  # sent, and not yet read
                if not isinstance(item := receiver.recv(), _End):
                    on_item(item)
        receiver.close()
    seconds = time.monotonic() - began
    if end is not None:
        return Outcome("ok" if end.message is None else "failed", end.message or "", seconds)
    if died is None:
        return Outcome(
            "timed out", f"stopped after {seconds:.0f} s, its share of the time", seconds
        )
    return Outcome("failed", f"its process {_cause(died)}", seconds)


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _call(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    sender: Connection,
    log: str,
    limit_s: float,
) -> None:
    """What the process runs."""
    os.setsid()  # killed together with the processes that it starts
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    except FileNotFoundError:  # its folder went with a parent that was stopped just now
        os._exit(1)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.enable(file=2)
    faulthandler.dump_traceback_later(max(0.1, limit_s - 1), file=2)
    try:
        function(*arguments, sender.send)
        sender.send(_End(None))
    except BaseException as error:
        traceback.print_exc()
        sender.send(_End(one_line(error)))
    sys.stdout.flush()
    sys.stderr.flush()


def _end_with_parent() -> None:
    """A parent that was killed leaves no process behind that holds the device."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _kill(process: BaseProcess) -> None:
    """End the process and those that it started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended, or has not come to setsid yet
        process.kill()
    process.join(_ENDING_S)


def _cause(exitcode: int) -> str:
    if exitcode >= 0:
        return f"ended with status {exitcode} before its work was done"
    name = signal.Signals(-exitcode).name
    return f"died of {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
