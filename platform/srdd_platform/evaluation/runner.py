"""Rows that are missing, made by Ray tasks, each row written once.

An item is whatever says what a row shows. What makes rows is loaded once in each task: models,
real images, an extractor. A task that died is tried again, and goes on with the rows it lacks.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from srdd_platform.core.files import to_json_bytes, write_once
from srdd_platform.evaluation.rows import row_path

T = TypeVar("T")
Make = Callable[[T, str], Mapping[str, Any]]  # item and key -> the row as JSON


def missing(directory: Path, items: Sequence[tuple[T, str]]) -> list[tuple[T, str]]:
    """The items whose rows are not on disk; an item stands beside the key of its row."""
    return [(item, key) for item, key in items if not row_path(directory, key).exists()]


def make_rows(directory: Path, items: Sequence[tuple[T, str]], load: Callable[[], Make[T]]) -> None:
    """Make the rows that are not on disk in this process, one after the other."""
    wanted = missing(directory, items)
    if not wanted:
        return
    make = load()
    for item, key in wanted:
        write_once(row_path(directory, key), to_json_bytes(make(item, key)))


def run_missing(
    directory: Path,
    items: Sequence[tuple[T, str]],
    load: Callable[[], Make[T]],
    *,
    name: str,
    device: str,
    threads: int,
    slots: int = 1,
) -> None:
    """Make the rows that are not on disk in Ray tasks. Ray must be connected, if any is missing.

    Args:
        directory: where ``rows/`` is.
        items: what the rows show, with their keys.
        load: called in each task; gives what makes a row. Ray pickles it.
        name: of the tasks.
        device: a task holds a GPU where it is "cuda".
        threads: CPUs that a task holds, and threads of torch where it runs on the CPU.
        slots: tasks at once, each with its share of the rows. One task measures latencies that
            no other disturbs.

    Raises:
        UserError: what ``load`` or a row raised.
    """
    wanted = missing(directory, items)
    if not wanted:
        return
    import ray

    gpus = 1 if device.startswith("cuda") else 0
    task = ray.remote(_task).options(num_cpus=threads, num_gpus=gpus, name=name, max_retries=1)
    shares = [wanted[i::slots] for i in range(slots) if wanted[i::slots]]
    place = directory.resolve()  # Ray may have been started in another folder
    ray.get([task.remote(place, share, load, 0 if gpus else threads) for share in shares])


def _task(
    directory: Path, items: Sequence[tuple[T, str]], load: Callable[[], Make[T]], threads: int
) -> None:
    """What a Ray task does; with ``threads`` 0, torch keeps its own number."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    make_rows(directory, items, load)
