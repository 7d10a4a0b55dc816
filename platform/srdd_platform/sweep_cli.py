"""The main of the scripts in ``sweeps/``: parse the options, run the sweep."""

from collections.abc import Mapping

from optuna.distributions import BaseDistribution
from rich.console import Console

from srdd_platform.command_errors import guarded
from srdd_platform.command_line import parse_command
from srdd_platform.sweep import Grid, run_sweep
from srdd_platform.sweep_args import SweepArgs


def sweep_main(
    name: str, space: Mapping[str, BaseDistribution], grid: Grid, doc: str | None
) -> None:
    """The main of a sweep script: parse its options and run it."""

    def action() -> None:
        args = parse_command(SweepArgs, description=doc)
        run_sweep(name, space, grid, args, Console(markup=False, highlight=False))

    guarded(action)
