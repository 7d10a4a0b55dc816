"""The command line: ``srdd``, built from typed dataclasses."""

from typing import Annotated, Any

import tyro

from srdd.errors import UserError
from srdd_platform.cli.command_errors import guarded
from srdd_platform.cli.command_line import parse_command
from srdd_platform.cli.convert import Convert, Export
from srdd_platform.cli.data import Data
from srdd_platform.cli.report import Report
from srdd_platform.cli.sample import Sample
from srdd_platform.cli.serve import Serve
from srdd_platform.cli.train import Train
from srdd_platform.core.interrupts import end_on_sigterm
from srdd_platform.core.option_names import as_option
from srdd_platform.core.ray_settings import check_settings

_sub = tyro.conf.subcommand

Command = (
    Annotated[Data, _sub("data")]
    | Annotated[Train, _sub("train")]
    | Annotated[Sample, _sub("sample")]
    | Annotated[Convert, _sub("convert")]
    | Annotated[Export, _sub("export")]
    | Annotated[Report, _sub("report")]
    | Annotated[Serve, _sub("serve")]
)


def main() -> None:
    """The console script."""
    end_on_sigterm()
    guarded(_run_command)


def _run_command() -> None:
    command: Any = parse_command(
        Command,
        prog="srdd",
        description="Train, search, compare and serve scale-wise image generators.",
    )
    check_settings()
    from srdd_platform.cli.log_output import log_to  # with rich, which --help does without
    from srdd_platform.cli.terminal import Terminal

    terminal = Terminal()
    try:
        with log_to(terminal):
            command.run(terminal)
    except UserError as error:
        raise as_option(error, command) from None
