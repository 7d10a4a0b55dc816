"""A Ray cluster that is started or joined when it is first needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from srdd.devices import find_device
from srdd_platform.core.ray_session import Session, session


class Cluster:
    """Ray, started when first needed: a sweep that is finished needs none.

    Args:
        address: of a cluster, or None for a local one.
        device: that a local one must have.
        console: where the dashboard's address is printed.
    """

    def __init__(self, address: str | None, device: str, console: Console) -> None:
        self._address = address
        self._device = device
        self._console = console
        self._context: Any = None

    def connect(self) -> Session:
        """Start or join Ray, once."""
        if self._context is None:
            if self._address is None:
                find_device(self._device)
            self._context = session(self._address)
            self._session: Session = self._context.__enter__()
            if self._session.dashboard:
                self._console.print(self._session.dashboard, soft_wrap=True)
        return self._session

    def close(self) -> None:
        """Leave Ray if it was joined."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None


@contextmanager
def lazy_cluster(address: str | None, device: str, console: Console) -> Iterator[Cluster]:
    """A cluster that is left at the end, if anything connected to it."""
    cluster = Cluster(address, device, console)
    try:
        yield cluster
    finally:
        cluster.close()
