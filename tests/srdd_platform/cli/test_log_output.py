"""The terminal shows the library's log as it showed what was printed before: line for line."""

import io
import logging
import threading

import pytest
import ray
from rich.console import Console

from srdd_platform.cli.log_output import log_to
from srdd_platform.cli.terminal import Terminal
from srdd_platform.core.ray_session import Session


def terminal(*, colours: bool = False) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    colour = "standard" if colours else None
    console = Console(
        file=file, width=40, markup=False, highlight=False,
        force_terminal=colours, color_system=colour,
    )  # fmt: skip
    return console, file


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (logging.INFO, "Training a tokenizer\n"),
        (logging.WARNING, "\x1b[33mTraining a tokenizer\x1b[0m\n"),
        (logging.ERROR, "\x1b[31mTraining a tokenizer\x1b[0m\n"),
        (logging.DEBUG, ""),
    ],
)
def test_a_record_is_printed_once_in_the_colour_of_its_level(level: int, line: str) -> None:
    console, file = terminal(colours=True)
    with log_to(console):
        logging.getLogger("srdd_platform.train.launcher").log(level, "Training a %s", "tokenizer")
    assert file.getvalue() == line


def test_a_path_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/runs/[bold]x/:cat:/" + "wide " * 40 + "100"
    with log_to(Terminal()):
        logging.getLogger("srdd").info("%s is finished", path)
    assert capsys.readouterr().out == f"{path} is finished\n"


def test_other_loggers_and_the_root_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    console, file = terminal()
    with log_to(console):
        logging.getLogger("ray.train").error("a worker is lost")
        logging.getLogger("srddx").error("another library")
        logging.getLogger("srdd_platform.data").warning("ours")
    assert file.getvalue() == "ours\n"
    assert [record.message for record in caplog.records] == ["a worker is lost", "another library"]


def test_a_block_within_a_block_prints_once_and_both_end() -> None:
    outer, first = terminal()
    inner, second = terminal()
    logger = logging.getLogger("srdd_platform")
    before = (list(logger.handlers), logger.level, logger.propagate)
    with log_to(outer):
        with log_to(inner):
            logger.info("one")
        logger.info("two")
    assert (first.getvalue(), second.getvalue()) == ("two\n", "one\n")
    assert (logger.handlers, logger.level, logger.propagate) == before


def test_a_thread_of_the_command_is_heard() -> None:
    console, file = terminal()
    with log_to(console):
        thread = threading.Thread(target=logging.getLogger("srdd.load").info, args=("loaded",))
        thread.start()
        thread.join()
    assert file.getvalue() == "loaded\n"


def test_a_message_that_cannot_be_formatted_ends_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console, file = terminal()
    with log_to(console):
        logging.getLogger("srdd").info("%d images", "many")
        logging.getLogger("srdd").info("on")
    assert file.getvalue() == "on\n"
    assert "many" in capsys.readouterr().err


@pytest.mark.ray
def test_workers_of_ray_keep_their_own_log(ray_session: Session) -> None:
    @ray.remote(num_cpus=0)
    def log() -> list[logging.Handler]:
        logging.getLogger("srdd_platform.data").warning("in a worker")
        return logging.getLogger("srdd_platform").handlers

    console, file = terminal()
    with log_to(console):
        assert ray.get(log.remote()) == []
    assert file.getvalue() == ""
