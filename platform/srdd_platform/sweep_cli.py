"""The main of the scripts in ``sweeps/``: parse the options, run the sweep."""

from collections.abc import Mapping

from optuna.distributions import BaseDistribution

from srdd_platform.command_errors import guarded
from srdd_platform.command_line import parse_command
from srdd_platform.sweep import Grid, run_sweep
from srdd_platform.sweep_args import SweepArgs
from srdd_platform.terminal import Terminal, prepare_streams


def sweep_main(
    name: str, space: Mapping[str, BaseDistribution], grid: Grid, doc: str | None
) -> None:
    """The main of a sweep script: parse its options and run it."""

    def action() -> None:
        args = parse_command(SweepArgs, description=doc)
        run_sweep(name, space, grid, args, Terminal())

    prepare_streams()
    guarded(action)
