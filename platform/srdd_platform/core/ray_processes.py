"""The processes of a local Ray, kept out of the process group of the program that starts them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from srdd_platform.core.ray_internals import detect_fate_sharing_support, services


@contextmanager
def own_process_groups() -> Iterator[None]:
    """Start Ray's processes in process groups of their own, for the block.

    ``timeout``, batch systems and job control signal a program's whole group. Ray's processes
    would end first, and the program, which needs them to end in order, would wait a minute for
    them. They still end with the program, whatever ends it: Ray asks the kernel for that. Where
    the kernel cannot do it, they stay in the group.
    """
    start = services.ConsolePopen
    if detect_fate_sharing_support():
        services.ConsolePopen = partial(start, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = start
