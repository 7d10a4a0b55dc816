"""The main of the scripts in ``sweeps/``: parse the options, run the sweep, print what came out."""

from collections.abc import Mapping
from functools import partial

from srdd_platform.cli.command_errors import guarded
from srdd_platform.cli.command_line import parse_command
from srdd_platform.core.ray_settings import check_settings
from srdd_platform.sweep.definition import Sweep
from srdd_platform.sweep.options import Request, SweepArgs


def main(sweep: Sweep, doc: str | None, presets: Mapping[str, Sweep] | None = None) -> None:
    """Run a sweep as the command line asks, and print its frontier.

    Args:
        sweep: the script's.
        doc: what ``--help`` says before the options.
        presets: the sweep that takes its place on the models of a preset, by its name.
    """

    def action() -> None:
        args = parse_command(SweepArgs, description=doc)
        check_settings()  # before Ray is imported
        _run(Request(_of_preset(sweep, presets or {}, args), args))

    guarded(action)


def _of_preset(sweep: Sweep, presets: Mapping[str, Sweep], args: SweepArgs) -> Sweep:
    """The sweep on what is searched: with ``--model`` a preset is no more than a recipe."""
    return sweep if args.model is not None else presets.get(args.preset, sweep)


def _run(request: Request) -> None:
    """Run a sweep, unless it is finished, and print what came out."""
    from srdd_platform.cli import sweep_tables
    from srdd_platform.cli.log_output import log_to
    from srdd_platform.cli.terminal import Terminal
    from srdd_platform.sweep.finished import read_finished

    terminal, axes = Terminal(), sweep_tables.axes_of(request.sweep)
    with log_to(terminal):
        outcome = read_finished(request)
        if outcome is None:
            from srdd_platform.cli.progress import bars
            from srdd_platform.sweep.run import run_sweep

            show = partial(sweep_tables.live, axes=axes, console=terminal)
            outcome = run_sweep(request.sweep, request.args, show=show, display=bars(terminal))
    sweep_tables.print_outcome(outcome, axes=axes, console=terminal)
