"""What the benchmarks' command lines share."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks import tables
from benchmarks.sizes import SIZES
from srdd.devices import find_device
from srdd.errors import UserError
from srdd.json_files import read_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Parser(argparse.ArgumentParser):
    """Wrong options end in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit 2 with the message."""
        self.exit(2, f"{self.prog}: {message}\n")


def parser(doc: str | None) -> Parser:
    """Options of every benchmark."""
    options = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=SIZES, default="small")
    options.add_argument(
        "--var-repo",
        type=Path,
        default=os.environ.get("SRDD_VAR_REPO"),
        metavar="DIR",
        help="checkout of FoundationVision/VAR (default: $SRDD_VAR_REPO)",
    )
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--threads", type=positive, default=1, help="CPU threads")
    options.add_argument("--seed", type=int, default=0, help="of the random weights and inputs")
    options.add_argument("--out", type=Path, metavar="FILE", help="write the report as JSON")
    options.add_argument(
        "--markdown", type=Path, metavar="FILE", help="print the tables of a report and stop"
    )
    return options


def positive(text: str) -> int:
    """A count from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def device_of(options: argparse.Namespace) -> torch.device:
    """The device asked for; sets the number of threads.

    Raises:
        UserError: it is unknown or not here.
    """
    torch.set_num_threads(options.threads)
    device = find_device(options.device)
    try:
        torch.empty(1, device=device)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"device {options.device!r} cannot be used: {reason}") from None
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """Where the numbers were read."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu
    described = name if isinstance(name, str) else name.get_cpu_capability()
    return {
        "torch": str(torch.__version__),
        "device": device.type,
        "name": described,
        "threads": torch.get_num_threads(),
    }


@contextlib.contextmanager
def float32_exact() -> Iterator[None]:
    """Without TF32: for comparing numbers."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def say(line: str) -> None:
    """Progress, to stderr."""
    print(line, file=sys.stderr, flush=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader never meets half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def main(
    options: Parser, run: Callable[[argparse.Namespace], dict[str, Any]], argv: list[str] | None
) -> int:
    """Parse, run, print the tables, write the report.

    Returns:
        The exit status: 0; 1 where a bound is exceeded; 2 for wrong input.
    """
    args = options.parse_args(argv)
    try:
        if args.markdown is not None:
            print(tables.markdown(_read(args.markdown)))
            return 0
        report = run(args)
        if args.out is not None:
            _write(args.out, report)
    except UserError as error:
        say(f"{options.prog}: {error}")
        return 2
    print(tables.markdown(report))
    return 0 if report["ok"] else 1


def _read(path: Path) -> dict[str, Any]:
    try:
        report = read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(report, dict) or report.get("benchmark") not in tables.KINDS:
        raise UserError(f"{path} is no report of these benchmarks")
    return report


def _write(path: Path, report: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
