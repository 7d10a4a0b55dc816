"""Help, a typing error and completion answer at once: they import what parses options alone."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from srdd_platform.cli.main import Command

ROOT = Path(__file__).resolve().parents[3]
PARSES = {
    "srdd", "srdd_platform", "tyro", "docstring_parser", "typeguard", "typing_extensions", "shtab",
}  # fmt: skip
SCRIPT = """
import json, runpy, sys
before = set(sys.modules)
path, *arguments = sys.argv[1:]
sys.argv = [path or "srdd", *arguments]
try:
    if path:
        runpy.run_path(path, run_name="__main__")
    else:
        from srdd_platform.cli.main import main
        main()
except SystemExit as error:
    code = error.code or 0
found = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps([code, sorted(found - set(sys.stdlib_module_names))]))
"""


def commands(union: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command's words: (), ("data",), ("data", "prepare"), ..."""
    yield words
    for option in get_args(union):
        kind, subcommand = option.__origin__, option.__metadata__[0]
        hints = get_type_hints(kind, include_extras=True) if is_dataclass(kind) else {}
        nested = [hints[f.name] for f in fields(kind) if f.name == "command"]
        yield from commands(nested[0] if nested else None, (*words, subcommand.name))


COMMANDS = sorted(set(commands(Command)))
SWEEPS = sorted((ROOT / "sweeps").glob("*.py"))


def run(path: str, *arguments: str) -> tuple[str, int, list[str]]:
    """What a command line prints, its exit code, and the packages that it imported."""
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, *arguments],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    *printed, last = found.stdout.splitlines()
    code, packages = json.loads(last)
    return "\n".join(printed) + found.stderr, code, packages


def test_all_commands_are_known_here() -> None:
    assert len(COMMANDS) >= 15
    assert {("data", "prepare"), ("train", "distill"), ("serve",)} <= set(COMMANDS)
    assert "resample_threshold.py" in {path.name for path in SWEEPS}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_imports_neither_torch_nor_ray(words: tuple[str, ...]) -> None:
    text, code, packages = run("", *words, "--help")
    assert (code, text[:6]) == (0, "usage:")
    assert f"srdd {' '.join(words)}".strip() in text
    assert set(packages) <= PARSES


@pytest.mark.parametrize("script", SWEEPS, ids=lambda path: path.name)
def test_help_of_a_sweep_imports_no_more(script: Path) -> None:
    text, code, packages = run(str(script), "--help")
    assert (code, text[:6]) == (0, "usage:")
    assert "--trials" in text
    assert set(packages) <= PARSES


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["trian"], 2),
        (["train", "transformer", "--maks", "markov"], 2),
        (["data", "prepare", "--resolution", "many"], 2),
        ([], 2),
        (["--tyro-print-completion", "bash"], 0),
    ],
)
def test_a_mistake_and_completion_import_no_more(arguments: list[str], code: int) -> None:
    text, found, packages = run("", *arguments)
    assert found == code
    assert "Traceback" not in text
    assert set(packages) <= PARSES
