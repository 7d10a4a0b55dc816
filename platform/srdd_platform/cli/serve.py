"""The command ``srdd serve``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from srdd_platform.serving.options import ServeOptions

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve(ServeOptions):
    """Serve a pipeline over HTTP with Ray Serve."""

    directory: tyro.conf.Positional[Path]  # pipeline or run directory

    def run(self, console: "Console") -> None:
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

        run(self, ready=ready, stopping=stopping)
