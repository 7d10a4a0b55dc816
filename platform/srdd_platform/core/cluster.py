"""A Ray cluster that is started or joined when it is first needed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from srdd.devices import find_device
from srdd_platform.core.ray_session import Session, session

logger = logging.getLogger(__name__)


class Cluster:
    """Ray, started when first needed: a sweep that is finished needs none.

    Args:
        address: of a cluster, or None for a local one.
        device: that a local one must have.
    """

    def __init__(self, address: str | None, device: str) -> None:
        self._address = address
        self._device = device
        self._context: Any = None

    def connect(self) -> Session:
        """Start or join Ray, once."""
        if self._context is None:
            if self._address is None:
                find_device(self._device)
            self._context = session(self._address)
            self._session: Session = self._context.__enter__()
            if self._session.dashboard:
                logger.info("%s", self._session.dashboard)
        return self._session

    def close(self) -> None:
        """Leave Ray if it was joined."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None


@contextmanager
def lazy_cluster(address: str | None, device: str) -> Iterator[Cluster]:
    """A cluster that is left at the end, if anything connected to it."""
    cluster = Cluster(address, device)
    try:
        yield cluster
    finally:
        cluster.close()
