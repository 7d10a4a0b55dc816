"""The terminal shows what the library logs: information plainly, warnings yellow, errors red."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

LOGGERS = ("srdd", "srdd_platform")  # with all below them; Ray and others keep their own handlers


class TerminalHandler(logging.Handler):
    """Prints each record on a console. A line longer than the terminal is not wrapped."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            self._console.print(self.format(record), style=_style(record.levelno), soft_wrap=True)
        except Exception:
            self.handleError(record)


def _style(level: int) -> str | None:
    if level >= logging.ERROR:
        return "red"
    return "yellow" if level >= logging.WARNING else None


@contextmanager
def log_to(console: Console) -> Iterator[None]:
    """Print the library's log on a console for the length of the block.

    The loggers have this handler alone meanwhile, so that no line is printed twice.
    """
    handler = TerminalHandler(console)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
