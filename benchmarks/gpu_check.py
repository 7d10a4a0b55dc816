"""What a machine with a GPU and torch can say of this project in some minutes, by one command.

    python -m benchmarks.gpu_check --out gpu --cifar cifar10.npz
    python -m benchmarks.gpu_check --out dry --device cpu --size tiny --batch 4 1 2 --minutes 1

It needs torch, numpy and safetensors, no Ray and no network. Parts, in this order: the machine and
its best rates; parity with the plain VAR loop; sampling at each batch, with CUDA graphs, with
torch.compile; a training step; what bf16, fp16 and int8 change; the tests marked ``gpu`` (needs
pytest); the training from packed images (``--cifar``) for the time that is left.

Each part runs in a process of its own, in a share of ``--minutes``; what a part does not use goes
to those after it. A part that fails, hangs or crashes is reported, and the others go on. ``--out``
has ``gpu_check.json``, ``gpu_check.md`` (one table) and ``gpu_check.log`` (what the parts printed),
whole at every moment, so that a run that is cut short keeps what it had.

Exits 0 if every part came to its end and nothing failed (what cannot run here is skipped, with the
reason); 1 if anything failed, took too long, or the run was stopped by SIGTERM or Ctrl-C, with
everything written; 2 for wrong input.
"""

import argparse
import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from benchmarks import command, gpu_parts, gpu_timing, gpu_training, isolated
from benchmarks.gpu_job import Job
from benchmarks.gpu_results import NAME, Part, Results, log_tail
from benchmarks.sizes import SIZES, Size
from benchmarks.stages import load_arrays
from srdd.errors import UserError

LEAST_MINUTES = 0.1
PRELOAD = ("benchmarks.gpu_parts", "benchmarks.gpu_timing", "benchmarks.gpu_training")


@dataclass(frozen=True, slots=True)
class Plan:
    """A part: its function, its weight among the parts that share the time, its batches."""

    name: str
    function: Callable[..., None]
    weight: float
    batches: tuple[int, ...] = (1,)


def plans(size: Size, batches: tuple[int, ...], trains: bool) -> list[Plan]:
    """All parts, in their order. The weights are about seconds of an eight-minute run at d16.

    Args:
        size: the model.
        batches: of sampling.
        trains: whether there are images for the last part, which takes no time else.
    """
    pruned = [f"pruned-{len(sides)}" for sides in size.pruned]
    eager = ["plain", "plain:fp32", "causal", "markov", "markov:fp16", "markov:fp32", *pruned,
             "srdd-1", "srdd-5", "epsilon"]  # fmt: skip
    graphs = ["plain", "causal+graph", "markov+graph", f"{pruned[0]}+graph"]
    compiled = ["plain", "markov", "markov+compile"]
    largest = max(batches)

    def arms(names: list[str]) -> Callable[..., None]:
        return partial(gpu_timing.sampling_arms, names)

    sampled = [
        Plan(f"sampling-{batch}", arms(eager), 70 if batch == largest else 25, (batch,))
        for batch in batches
    ]
    return [
        Plan("environment", gpu_parts.environment, 20),
        Plan("parity", gpu_parts.parity_with_plain, 30, (min(4, largest),)),
        *sampled,
        Plan("graphs", arms(graphs), 45, batches),
        Plan("compile", arms(compiled), 75, batches),
        Plan("train-step", gpu_timing.training_steps, 45, (largest,)),
        Plan("agreement", gpu_parts.agreement, 25, (min(8, largest),)),
        Plan("gpu-tests", gpu_parts.gpu_tests, 60),
        Plan("cifar10", gpu_training.cifar10, 60 if trains else 1),
    ]


def check(todo: list[Plan], job: Callable[..., Job], results: Results, minutes: float) -> None:
    """Run the parts one after the other, each in its share of the time that is left."""
    over = time.monotonic() + 60 * minutes
    results.machine = {"torch": str(torch.__version__), "commit": gpu_parts.commit()}
    results.write()
    isolated.warm_up(PRELOAD)
    for at, plan in enumerate(todo):
        part = results.parts[at]
        began = time.monotonic()
        weights = [later.weight for later in todo[at:]]
        part.limit_s = max(0.0, over - began) * plan.weight / sum(weights)
        part.status = "running"
        results.write()
        command.say(f"{plan.name}: {part.limit_s:.0f} s at most")
        with tempfile.TemporaryDirectory() as temporary:
            log = Path(temporary) / "log"

            def keep(what: Any, part: Part = part, log: Path = log) -> None:
                part.log = log_tail(log)
                results.add(part, what)

            try:
                outcome = isolated.run(
                    plan.function,
                    (job(batches=plan.batches, limit_s=part.limit_s, began=began),),
                    limit_s=part.limit_s,
                    log=log,
                    on_item=keep,
                )
            finally:
                part.log, part.seconds = log_tail(log), time.monotonic() - began
        results.ended(part, outcome)
        command.say(f"{plan.name}: {outcome.status} {outcome.message}".rstrip())
    results.complete = True
    results.write()


class StoppedError(BaseException):
    """A signal asks the run to end."""


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise :class:`StoppedError`."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise StoppedError(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(args: argparse.Namespace, todo: list[Plan]) -> Results:
    """Run the parts and leave their results in ``args.out``.

    Raises:
        UserError: the directory cannot be written or holds the results of another run.
    """
    arguments = {name: str(value) for name, value in vars(args).items()}
    results = Results(args.out, arguments, [Part(plan.name) for plan in todo])
    if (args.out / NAME).exists():
        raise UserError(f"--out {args.out} holds the results of another run: give another one")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be made: {error.strerror}") from None
    job = partial(
        Job,
        size_name=args.size,
        device_name=args.device,
        threads=args.threads,
        seed=args.seed,
        arrays=args.cifar,
    )
    try:
        with stoppable():
            check(todo, job, results, args.minutes)
    except StoppedError as signal_name:
        for part in results.parts:
            if part.status == "running":
                part.status, part.message = "cut", f"the run was stopped by {signal_name}"
        results.write()
        command.say(f"stopped by {signal_name}: {args.out} keeps what was read")
    return results


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command.Parser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--cifar", type=Path, metavar="FILE", help="packed by pack_images")
    parser.add_argument("--size", choices=SIZES, default="d16")
    parser.add_argument("--batch", type=command.positive, nargs="+", default=[64, 1, 8])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=command.positive, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights and inputs")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="these alone, by their names")
    return parser.parse_args(argv)


def chosen(args: argparse.Namespace) -> list[Plan]:
    """The parts that the options ask for.

    Raises:
        UserError: an option does not fit the others or this machine.
    """
    if not (math.isfinite(args.minutes) and args.minutes >= LEAST_MINUTES):
        raise UserError(f"--minutes must be {LEAST_MINUTES} or more, got {args.minutes:g}")
    if len(set(args.batch)) != len(args.batch):
        raise UserError("--batch names a batch twice")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "torch sees no CUDA device here; a dry run: --device cpu --size tiny --batch 4 1 2"
        )
    if not args.device.startswith("cuda"):
        command.device_of(args)  # a CUDA device is touched by the parts' own processes alone
    if args.cifar is not None:
        load_arrays(args.cifar)
    every = plans(SIZES[args.size], tuple(args.batch), args.cifar is not None)
    if args.parts is None:
        return every
    names = [plan.name for plan in every]
    if unknown := [name for name in args.parts if name not in names]:
        raise UserError(
            f"--parts {unknown[0]}: there is no such part; there are {', '.join(names)}"
        )
    return [plan for plan in every if plan.name in ("environment", *args.parts)]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        results = run(args, chosen(args))
    except UserError as error:
        command.say(f"gpu_check: {error}")
        return 2
    print(results.markdown())
    return 0 if results.ok else 1


if __name__ == "__main__":
    sys.exit(main())
