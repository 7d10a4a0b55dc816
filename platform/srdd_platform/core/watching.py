"""Actions that only watch a run: an error in one is reported once, and the run goes on.

These are metrics for Prometheus, TensorBoard's files, previews, speeds and the progress display.
``metrics.jsonl`` and checkpoints are the record of a run: an error in writing them ends it.
"""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from srdd_platform.core.file_errors import explain

WARNINGS = "warnings.jsonl"  # in a run directory: messages of its first worker to the launcher

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class Watcher:
    """Runs actions that a run can do without."""

    def __init__(self, what: str, tell: Callable[[str], None]) -> None:
        """Name what is watched.

        Args:
            what: begins the message, such as "TensorBoard's files".
            tell: called with one line at the first error.
        """
        self.failed = False
        self._what, self._tell = what, tell

    def __call__(self, action: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """What the action returns; None where it fails."""
        try:
            return action(*args, **kwargs)
        except Exception as error:
            if not self.failed:
                self.failed = True
                with suppress(Exception):  # who is told may be what is broken
                    self._tell(f"{self._what} cannot be kept up: {_reason(error)}; the run goes "
                               "on without")  # fmt: skip
            return None


def tell_launcher(run: Path) -> Callable[[str], None]:
    """Sends lines from a worker to its launcher: to a file in the run directory, and to the log."""

    def tell(text: str) -> None:
        logger.warning(text)
        with (run / WARNINGS).open("a") as file:
            file.write(json.dumps({"warning": text}) + "\n")

    return tell


def _reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and (text := explain(error)):
        return text
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
