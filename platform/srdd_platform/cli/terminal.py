"""Standard output as it may come: closed, or without a reader.

What a command prints is not its result, so none of this ends it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import Progress


class Terminal(Console):
    """A console that falls silent where nobody can read it."""

    def __init__(self) -> None:
        super().__init__(markup=False, highlight=False, emoji=False)  # paths stay as they are

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
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
