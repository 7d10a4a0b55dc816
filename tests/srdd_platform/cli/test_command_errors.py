"""How a command ends: the option that a person typed is named, and a path never stands alone."""

import errno
import io
import os
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from srdd.errors import UserError
from srdd.validation import from_dict
from srdd.var.config import SamplerConfig
from srdd_platform.cli.command_errors import guarded, one_line
from srdd_platform.core.file_errors import REMEDIES, explain
from srdd_platform.core.option_names import as_option


@dataclass(frozen=True)
class Group:
    """Options inside a command."""

    max_steps: int | None = None
    gan_weight: float | None = None


@dataclass(frozen=True)
class Command:
    """A command line as the parser leaves it."""

    top_k: int | None = None
    cfg: float | None = None
    training: Group = field(default_factory=Group)


def refusal(**values: object) -> UserError:
    with pytest.raises(UserError) as caught:
        SamplerConfig(**values)  # type: ignore[arg-type]
    return caught.value


def test_an_error_about_a_setting_names_the_option_that_gave_it() -> None:
    named = as_option(refusal(top_k=-1), Command(top_k=-1))
    assert str(named) == "--top-k must be >= 0 (0 keeps every code), got -1"
    named = as_option(
        UserError("steps must be positive", field="steps"), Command(None, None, Group(0))
    )
    assert str(named) == "--max-steps must be positive"
    weight = UserError("gan must be >= 0", field="gan")
    named = as_option(weight, Command(training=Group(gan_weight=-1)))
    assert str(named) == "--gan-weight must be >= 0"


def test_a_setting_that_no_option_gave_keeps_its_name() -> None:
    """It comes from a preset or a file, where it has this name."""
    assert str(as_option(refusal(top_k=-1), Command(cfg=1.0))).startswith("top_k must")
    with pytest.raises(UserError) as caught:
        from_dict(SamplerConfig, {"cfg": -1}, where="sampler.json")
    text = "sampler.json: cfg must be >= 0, got -1.0"
    assert str(as_option(caught.value, Command(cfg=1.0))) == text


def test_an_error_from_another_process_still_knows_its_setting() -> None:
    error = pickle.loads(pickle.dumps(refusal(top_k=-1)))
    assert str(as_option(error, Command(top_k=-1))).startswith("--top-k must")


@pytest.mark.parametrize("number", sorted(REMEDIES), ids=lambda number: errno.errorcode[number])
def test_every_file_error_says_what_to_do(number: int) -> None:
    text = explain(OSError(number, os.strerror(number), "shards/x.tar"))
    assert text is not None
    assert ": " in text
    assert os.strerror(number) not in text  # not the library's own words
    assert number in (errno.EMFILE, errno.ENFILE) or text.startswith("shards/x.tar: ")


def test_a_disk_error_while_reading_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        guarded(lambda: Path("/proc/self/mem").read_bytes())  # Python names no file here
    assert capsys.readouterr().err.startswith("srdd: a file: the disk reports an error")


def test_an_unknown_file_error_is_a_bug() -> None:
    def action() -> None:
        raise OSError("no number, no name")

    with pytest.raises(OSError, match="no number"):
        guarded(action)


def causes(root: Path) -> dict[str, object]:
    """Things that people really do to a path, each with the action that fails."""
    (root / "file").write_text("words")
    (root / "folder").mkdir()
    (root / "loop").symlink_to("loop")
    return {
        "gone": lambda: (root / "gone").read_bytes(),
        "file/below": lambda: (root / "file" / "below").read_bytes(),
        "folder": lambda: (root / "folder").read_bytes(),
        "loop": lambda: (root / "loop").read_bytes(),
        "x" * 300: lambda: (root / ("x" * 300)).write_bytes(b""),
    }


@pytest.mark.parametrize("place", ["gone", "file/below", "folder", "loop", "x" * 300])
def test_a_path_in_the_way_ends_in_one_line(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        guarded(causes(tmp_path)[place])  # type: ignore[arg-type]
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"srdd: {tmp_path / place}: ")
    assert line.count("\n") == 1
    assert len(line.removeprefix(f"srdd: {tmp_path / place}: ").split()) >= 4


@pytest.mark.parametrize(
    ("encoding", "tea"), [("utf-8", "\u8336"), ("ascii", r"\u8336"), ("latin-1", r"\u8336")]
)
def test_a_name_that_the_terminal_cannot_show_is_printed_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, tea: str
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    guarded(lambda: Console().print("skipped caf\udce9.png: \u8336"))
    terminal.flush()
    assert terminal.buffer.getvalue().decode(encoding) == f"skipped caf\\udce9.png: {tea}\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n  b\r\nc", "a b c"),
        ("caf\u00e9 \u7814\u7a76 \U0001f408", "caf\u00e9 \u7814\u7a76 \U0001f408"),
        ("caf\udce9/x", "caf\\udce9/x"),  # a file name that is not UTF-8
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),  # torch's advice has terminal codes
        ("nul\x00", "nul\\x00"),
    ],
)
def test_a_line_can_be_printed_on_every_terminal(text: str, shown: str) -> None:
    assert one_line(text) == shown
    one_line(text).encode()


def test_a_message_is_one_line_whatever_name_is_in_it() -> None:
    assert (
        str(UserError(" class folder a\r\n b has no images\n")) == "class folder a b has no images"
    )
