"""Reading before it is asked for, in order."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

AHEAD = 2  # results computed before they are asked for, a thread

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(tasks: Iterator[T], work: Callable[[T], R], threads: int) -> Iterator[R]:
    """The results of ``work`` in the order of ``tasks``, computed by threads before their turn.

    Decoding a PNG leaves the interpreter free, so threads read while a training computes.
    """
    if not threads:
        yield from map(work, tasks)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="read ahead") as pool:
        pending: deque[Future[R]] = deque(
            pool.submit(work, task) for task in islice(tasks, AHEAD * threads)
        )
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(work, task) for task in islice(tasks, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
