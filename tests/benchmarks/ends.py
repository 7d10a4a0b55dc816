"""Functions that end in every way, for processes that import them by name."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from typing import Any

from benchmarks.gpu_results import Machine, Row
from benchmarks.isolated import Send

LONG_S = 60.0


def sends(count: int, send: Send) -> None:
    for number in range(count):
        send(number)
    print("printed")


def fails(send: Send) -> None:
    send("before")
    raise ValueError("the first line\nthe second")


def hangs(send: Send) -> None:
    send("before")
    time.sleep(LONG_S)


def aborts(send: Send) -> None:
    send("before")
    os.abort()


def leaves(status: int, send: Send) -> None:
    send("before")
    os._exit(status)


def is_killed(send: Send) -> None:
    send("before")
    os.kill(os.getpid(), 9)


def ends_slowly(send: Send) -> None:
    """As a process whose libraries hang when it is taken down."""
    send("before")
    threading.Thread(target=time.sleep, args=(LONG_S,)).start()


def sends_what_cannot_be_pickled(send: Send) -> None:
    send("before")
    send(lambda: None)


def reads_the_machine(_job: Any, send: Send) -> None:
    send(Machine({"card": "a card", "torch": "2.11.0", "commit": "abc1234", "memory_gb": 80}))


def reads(_job: Any, send: Send) -> None:
    send(Row(what="arm", dtype="bf16", batch=8, ms=[9.0, 8.0, 10.0], rounds=1))
    send(Row(what="arm", dtype="bf16", batch=8, ms=[5.0, 4.0, 6.0], rounds=2,
             images_per_s=1600.0, peak_mb=812.0, against_plain=[2.5, 2.4, 2.6]))  # fmt: skip
    send(Row(what="check", dtype="fp32", value=1e-6, bound=1e-4, note="a | b"))


def reads_too_much(_job: Any, send: Send) -> None:
    send(Row(what="check", dtype="fp32", value=2e-4, bound=1e-4))


def reads_and_fails(_job: Any, send: Send) -> None:
    send(Row(what="before", value=1.0))
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def reads_and_hangs(_job: Any, send: Send) -> None:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG_S})"])
    send(Row(what="before", value=child.pid))
    child.wait()


def stops_the_run(number: int, _job: Any, send: Send) -> None:
    send(Row(what="before", value=1.0))
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    os.kill(parent.pid, number)
    time.sleep(LONG_S)


def reads_and_crashes(_job: Any, send: Send) -> None:
    send(Row(what="before", value=1.0))
    os.abort()
