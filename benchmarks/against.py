"""The speed of this checkout against another one: sampling and the training step, on one thread.

    python -m benchmarks.against --old ../other --rounds 15

Each checkout runs in a process of its own; the two take turns, and who begins changes each round.
Both load the same weights, of random numbers, from the same directories. Times are CPU seconds of
one thread. A ratio above 1 says that this checkout is faster: the median over the rounds, and its
95 % interval by bootstrap. Exits 1 where a median is below 0.95 or an interval below 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LEAST_RATIO = 0.95
TURN_S = 0.5  # of a turn, at least


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed."""

    name: str
    model: str  # "digits" or a size of benchmarks.sizes
    batch: int
    trains: bool = False


CASES = (
    Case("sample digits, batch 1", "digits", 1),
    Case("sample digits, batch 64", "digits", 64),
    Case("sample small, batch 4", "small", 4),
    Case("train digits, batch 64", "digits", 64, trains=True),
    Case("train small, batch 4", "small", 4, trains=True),
)


def prepare(case: Case, directory: str) -> Callable[[], object]:
    """The call to be timed, by names that every checkout has."""
    import torch

    from benchmarks.train_step import Data, our_step
    from srdd import SamplerConfig, load_pipeline, sample

    torch.set_num_threads(1)
    pipeline: Any = load_pipeline(f"{directory}/{case.model}")
    labels_B = torch.arange(case.batch) * 37 % len(pipeline.class_names)
    if not case.trains:
        top_k = min(900, pipeline.transformer.config.vocab_size)
        config = SamplerConfig(cfg=1.5, top_k=top_k, top_p=0.96)
        return lambda: sample(pipeline, labels_B, config, range(case.batch))
    model, generator = pipeline.transformer, torch.Generator().manual_seed(0)
    shape = (case.batch, model.schedule.length)
    codes_BL = torch.randint(model.config.vocab_size, shape, generator=generator)
    step = our_step(pipeline, Data(torch.zeros(0), labels_B, codes_BL.to(torch.uint16)))
    return step.run


def work() -> None:
    """A checkout's process: time what each line asks for, and answer with a line."""
    import srdd

    if not Path(srdd.__file__).is_relative_to(Path.cwd()):  # as where it has been installed
        sys.exit(f"{Path.cwd()}: srdd comes from {srdd.__file__} instead")
    calls: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        case = Case(**asked["case"])
        if case.name not in calls:
            calls[case.name] = prepare(case, asked["directory"])
            calls[case.name]()  # warms up
        began = time.thread_time()
        for _ in range(asked["count"]):
            calls[case.name]()
        print(json.dumps((time.thread_time() - began) / asked["count"]), flush=True)


class Checkout:
    """A checkout's process."""

    def __init__(self, root: Path, directory: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root)}
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--work"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, bufsize=0, cwd=root, env=environment, stdin=pipe, stdout=pipe
        )
        self.root, self.directory = root, directory

    def seconds(self, case: Case, count: int) -> float:
        """CPU seconds of a call, the mean of ``count``.

        Raises:
            RuntimeError: the process has ended; its error is on stderr.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"case": asdict(case), "directory": self.directory, "count": count}
        with suppress(BrokenPipeError):  # it has ended: no answer comes
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.root} ended with {self.process.wait()}")
        return float(json.loads(answer))

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def save_models(directory: Path) -> None:
    """Write the pipelines that both checkouts load."""
    import torch

    from benchmarks.sizes import SIZES
    from benchmarks.weights import random_pipeline, with_mask
    from srdd.presets import digits
    from srdd.var.config import SamplerConfig
    from srdd.var.init import init_weights
    from srdd.var.pipeline import Pipeline, save_pipeline
    from srdd.var.tokenizer import Tokenizer
    from srdd.var.transformer import ScaleTransformer

    torch.manual_seed(0)
    preset, size = digits(), SIZES["small"]
    tokenizer, model = Tokenizer(preset.tokenizer), ScaleTransformer(preset.transformer)
    init_weights(model, gate=1.0, head=20.0)
    model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    names = tuple(map(str, range(preset.transformer.num_classes)))
    save_pipeline(Pipeline(tokenizer, model, SamplerConfig(), names), directory / "digits")
    small = with_mask(random_pipeline(size, torch.device("cpu")), size, "markov")
    save_pipeline(small, directory / size.name)


def compare(old: Checkout, new: Checkout, case: Case, rounds: int) -> dict[str, Any]:
    """Time a case in turns: medians in seconds, the ratio old / new and its interval."""
    count = 1 + int(TURN_S / max(old.seconds(case, 1), new.seconds(case, 1)))
    pairs = []
    for turn in range(rounds):
        order = (old, new) if turn % 2 else (new, old)
        spent = {one: one.seconds(case, count) for one in order}
        pairs.append((spent[old], spent[new]))
    ratios = np.array([a / b for a, b in pairs])
    picks = np.random.default_rng(0).integers(len(ratios), size=(10_000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
    ratio = float(np.median(ratios))
    seconds = np.median(np.array(pairs), axis=0).tolist()
    ok = bool(ratio >= LEAST_RATIO and high >= 1)
    return {"case": case.name, "seconds": seconds, "ratio": ratio, "interval": [low, high],
            "rounds": rounds, "ok": ok}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--old", type=Path, metavar="DIR", help="the other checkout")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains it")
    options.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = options.parse_args(argv)
    if args.work:
        work()
        return 0
    if args.old is None or not (args.old / "srdd").is_dir():
        options.exit(2, f"{options.prog}: --old must be a checkout: it has a folder srdd\n")
    ok = True
    with tempfile.TemporaryDirectory() as directory:
        save_models(Path(directory))
        old, new = (Checkout(root.resolve(), directory) for root in (args.old, ROOT))
        try:
            for case in (case for case in CASES if args.only in case.name):
                row = compare(old, new, case, args.rounds)
                before, after = (f"{seconds * 1e3:.2f}" for seconds in row["seconds"])
                interval = "[{:.3f}, {:.3f}]".format(*row["interval"])
                verdict = "" if row["ok"] else "  SLOWER"
                times = f"{before:>9} ms -> {after:>9} ms"
                print(f"{case.name:24} {times}: {row['ratio']:.3f} {interval}{verdict}", flush=True)
                ok = ok and row["ok"]
        finally:
            old.close()
            new.close()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
