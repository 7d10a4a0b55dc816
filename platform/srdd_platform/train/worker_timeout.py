"""A bound on how long a training may be without workers; Ray itself would wait for ever."""

import time
from typing import Any

from srdd_platform.train.ray_internals import ControllerCallback

WITHOUT_WORKERS = ("INITIALIZING", "SCHEDULING", "RESCHEDULING", "RESTARTING", "RESIZING")
PAUSE_S = 0.5


class NoWorkersError(Exception):
    """A training had no workers for too long."""


class Patience(ControllerCallback):  # type: ignore[misc]
    """Ends a training whose lost workers find no room again in time. Runs in Ray's controller."""

    def __init__(self, limit_s: float, workers: str) -> None:
        self._limit_s = limit_s
        self._workers = workers
        self._since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Ray calls this after each round of its loop.

        Raises:
            NoWorkersError: the time is over.
        """
        if current_state._state_type.state_name not in WITHOUT_WORKERS:
            self._since = None
            return
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > self._limit_s:
            raise NoWorkersError(
                f"no room for {self._workers} in {self._limit_s:g} s; the last checkpoint is kept: "
                "give the same command again when there is"
            )
        if type(previous_state) is type(current_state):
            time.sleep(PAUSE_S)  # Ray asks again without a pause
