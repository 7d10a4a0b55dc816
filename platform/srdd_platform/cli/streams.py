"""The standard streams as they may come: closed, or of an encoding that lacks characters."""

import os
import sys


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
