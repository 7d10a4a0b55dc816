"""The main of the scripts in ``sweeps/``: parse the options, run the sweep."""

from collections.abc import Mapping

from optuna.distributions import BaseDistribution

from srdd_platform.cli.command_errors import guarded
from srdd_platform.cli.command_line import parse_command
from srdd_platform.core.ray_settings import check_settings
from srdd_platform.sweep.options import SweepArgs
from srdd_platform.sweep.space import Grid


def sweep_main(
    name: str, space: Mapping[str, BaseDistribution], grid: Grid, doc: str | None
) -> None:
    """The main of a sweep script: parse its options and run it."""

    def action() -> None:
        args = parse_command(SweepArgs, description=doc)
        check_settings()  # before Ray is imported
        from srdd_platform.cli.log_output import log_to
        from srdd_platform.cli.progress import bars
        from srdd_platform.cli.terminal import Terminal
        from srdd_platform.sweep.run import run_sweep

        terminal = Terminal()
        with log_to(terminal):
            run_sweep(name, space, grid, args, terminal, display=bars(terminal))

    guarded(action)
