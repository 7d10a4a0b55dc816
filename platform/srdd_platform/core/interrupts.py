"""SIGTERM ends a command in order, as Ctrl-C does."""

import signal
import threading

_asked_to_end = threading.Event()


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM; raised in the main thread.

    Inside a call of Ray it comes out as a bare KeyboardInterrupt: :func:`terminated` tells.
    """


def terminated() -> bool:
    """Whether SIGTERM has come."""
    return _asked_to_end.is_set()


def note_terminated() -> None:
    """Note a SIGTERM that another handler has answered."""
    _asked_to_end.set()


def end_on_sigterm() -> None:
    """Let the first SIGTERM end the program in order, as Ctrl-C does; later ones change nothing."""

    def handler(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _asked_to_end.set()
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        _asked_to_end.clear()
        signal.signal(signal.SIGTERM, handler)
