"""The command ``srdd serve``."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from srdd.devices import Dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """Serve a pipeline over HTTP with Ray Serve."""

    directory: tyro.conf.Positional[Path]  # pipeline or run directory
    port: int = 8000
    host: str = "127.0.0.1"
    replicas: int = 1
    max_batch: int = 32  # images that share a batch
    device: str = "cpu"
    dtype: Dtype = "float32"
    address: str | None = None  # an existing Ray cluster (host:port or auto); else a local one

    def run(self, console: Console) -> None:
        """Serve until interrupted."""
        from srdd_platform.serving.app import run
        from srdd_platform.serving.deployment import DRAIN_S

        def ready(url: str) -> None:
            console.print(f"Serving {self.directory} at {url}", soft_wrap=True)

        def stopping() -> None:
            console.print(
                f"Stopping: requests in progress have {DRAIN_S:g} s; a second signal ends at once",
                soft_wrap=True,
            )

        run(
            self.directory, host=self.host, port=self.port, address=self.address,
            replicas=self.replicas, max_batch=self.max_batch, device=self.device,
            dtype=self.dtype, ready=ready, stopping=stopping,
        )  # fmt: skip
