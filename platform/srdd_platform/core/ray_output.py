"""What Ray writes to the terminal while it starts, kept for its own log."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from srdd_platform.core.interrupts import Terminated, note_terminated
from srdd_platform.core.ray_internals import logs_dir


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what Ray writes to the terminal while it starts for its own log, for the block.

    Its C++ parts write to the standard error by its number.

    Raises:
        Terminated: SIGTERM came, which Ray itself answers with SystemExit while it starts.
    """
    if sys.stderr is None:
        yield
        return
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as written:
        sys.stderr.flush()
        os.dup2(written.fileno(), 2)
        try:
            yield
        except SystemExit:
            note_terminated()
            raise Terminated from None
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            written.seek(0)
            _log(written.read())


def _log(text: bytes) -> None:
    """Add a text to the logs of Ray's session, if it has one that can be written to."""
    directory = logs_dir()
    if text and directory is not None:
        with suppress(OSError), (directory / "srdd.log").open("ab") as file:
            file.write(text)
