"""The command ``srdd report``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Rebuild a sweep's report from its table, configuration and grids."""

    directory: tyro.conf.Positional[Path]

    def run(self, console: "Console") -> None:
        """Build it."""
        from srdd_platform.report.page import build_report

        console.print(f"Report: {build_report(self.directory)}", soft_wrap=True)
