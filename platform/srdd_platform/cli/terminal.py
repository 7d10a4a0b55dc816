"""Standard output and error as they may come: closed, without a reader, or of another encoding.

What a command prints is not its result, so none of this ends it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console


class Terminal(Console):
    """A console that falls silent where nobody can read it."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, if that is possible."""
        try:
            super().print(*objects, **options)
        except OSError:  # a full disk behind a redirection, a terminal that was closed
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Fall silent, and let what is still buffered go nowhere."""
        with suppress(SystemExit, OSError):  # the base class then ends the process
            super().on_broken_pipe()


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that reports (done, in all); there is none where no person looks.

    Args:
        console: where it shows.
        what: the things counted, such as "images".
    """
    from rich.progress import Progress  # not for --help

    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def prepare_streams() -> None:
    """Make the standard streams writable.

    A descriptor that is closed would be given to the next file that is opened, and messages would
    go into that; it becomes the null device. Characters that an encoding lacks are escaped.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
