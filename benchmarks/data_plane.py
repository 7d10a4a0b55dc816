"""What reading costs a training: shards against tensors, codes against pixels, a step's parts.

    srdd data prepare --recipe cifar10 --path cifar-10-batches-py --out data/cifar10
    python -m benchmarks.data_plane --data data/cifar10 --out data_plane.json

Three measurements of one run, on random weights:

- a step of the preset's tokenizer and classifier from shards, against the same step on a batch
  that lies in memory: the share of its rate that the data plane delivers. Without reading ahead
  the whole cost of reading shows, which a thread (``--loader-workers``) can only hide;
- a step of the preset's transformer, and of ``--size`` at its own resolution (on smooth random
  images, without the optimizer's update), from stored codes against from pixels, and the encoder;
- the parts of a step of the preset's tokenizer, over one period of its restarts.

Unlike the others this benchmark imports ``srdd_platform``: it times that package's reading.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import command, measure
from benchmarks.sizes import SIZES
from benchmarks.weights import random_images
from srdd.errors import UserError
from srdd.images import to_float
from srdd.presets import Preset, get_preset
from srdd.train.ema import Ema
from srdd.train.loop import clear_gradients
from srdd.train.optim import build_optimizer
from srdd.train.task import Batch, Task
from srdd.train.var.codebook import quantize
from srdd.train.workers import ALONE
from srdd.var.pipeline import load_tokenizer, save_tokenizer
from srdd.var.tokenizer import Tokenizer
from srdd_platform.core.files import write_json
from srdd_platform.core.images import to_png
from srdd_platform.data.codes import FORMAT, Extraction, encode_shard
from srdd_platform.data.dataset import ShardDataset, load_images
from srdd_platform.data.shards import prepare
from srdd_platform.train.batches import batches
from srdd_platform.train.data import ImageData, TrainingData, open_data
from srdd_platform.train.job import Job, make_job
from srdd_platform.train.options import Options, TransformerOptions

LEAST = 0.95  # share of the rate on tensors that shards must deliver
NOISE = 0.02  # of a share
IMAGES = 512  # that codes are made of, for a preset
PARTS = ("data", "encoder", "quantizer", "decoder", "losses", "backward", "optimizer", "upkeep")

MEASURES = ("rates", "preset", "size", "parts")  # preset and size: codes against pixels

T = TypeVar("T")


class Parts:
    """Seconds by part: CPU time, on a GPU wall time between two waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add what happens meanwhile to a part, not to the one around it; in upkeep all is that."""
        if "upkeep" in self._open:
            yield
            return
        self._open.append(part)
        before = self._now()
        yield
        spent = self._now() - before
        self._open.pop()
        self.seconds[part] += spent
        if self._open:
            self.seconds[self._open[-1]] -= spent

    def wrapped(self, part: str, function: Callable[..., T]) -> Callable[..., T]:
        """A function whose calls are timed."""

        def call(*arguments: Any, **options: Any) -> T:
            with self.timed(part):
                return function(*arguments, **options)

        return call

    def _now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Training:
    """A task and its optimizer: one update a call, as :func:`srdd.train.loop.fit` makes it."""

    def __init__(self, job: Job, device: torch.device, *, update: bool = True) -> None:
        self.task: Task = job.build_task()
        self.task.module.to(device).train()
        self.config = job.optim
        self.weights = [w for w in self.task.module.parameters() if w.requires_grad]
        self.device = device
        self.optimizer = build_optimizer(self.task.module, self.config) if update else None
        self.ema = Ema(self.task.module, self.config.ema) if update else None
        self.done = 0

    def step(self, batch: Batch, parts: Parts | None = None) -> None:
        """One update; without an optimizer its gradients alone."""
        parts = parts or Parts(torch.device("cpu"))
        low = self.config.precision == "bfloat16"
        with parts.timed("forward"):
            clear_gradients(self.weights)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                loss: Tensor = self.task.module(batch, self.done)[0]
        with parts.timed("backward"):
            torch.autograd.backward(loss)
        with parts.timed("optimizer"):
            nn.utils.clip_grad_norm_(self.weights, self.config.clip)
            if self.optimizer is not None:
                self.optimizer.step()
        with parts.timed("upkeep"):
            if self.ema is not None:
                self.ema.update()
            self.task.after_step(batch, self.done, ALONE)
        self.done += 1


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements share."""

    preset: Preset
    data: Path
    scratch: Path  # a directory that goes away
    device: torch.device
    repeats: int
    steps: int  # updates a call

    def job(self, kind: str, **options: Any) -> Job:
        """A training on the preset's data that never ends."""
        given = {"max_steps": 10**6, "device": self.device.type, **options}
        return make_job(kind, self.preset, self.data, self.scratch / kind, Options(**given))


def stream(job: Job, device: torch.device, data: TrainingData | None = None) -> Iterator[Batch]:
    """The batches of a job from the first update on, by default of what it trains on."""
    return batches(data or open_data(job), job.optim, ALONE, range(job.steps), device)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All three measurements."""
    device = command.device_of(options)
    if options.data is None:
        raise UserError("--data DIR is needed: shards of the preset's resolution")
    preset = get_preset(options.preset)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(preset, options.data, Path(scratch), device, options.repeats, options.steps)
        wanted, codes = options.measure, []
        kinds: tuple[str, ...] = ("tokenizer", "classifier") if "rates" in wanted else ()
        rates = [rate(bench, kind) for kind in kinds]
        if "preset" in wanted:
            codes.append(preset_codes(bench, options.preset))
        if "size" in wanted:
            codes.append(size_codes(bench, options))
        parts = step_parts(bench) if "parts" in wanted else None
    return {
        "benchmark": "data_plane",
        "size": f"{options.preset} and {options.size}",
        "preset": options.preset,
        "repeats": options.repeats,
        "steps": options.steps,
        "environment": command.environment(device),
        "rates": rates,
        "codes": codes,
        "parts": parts,
        "ok": all(row["ok"] for row in [*rates, *codes]),
    }


def rate(bench: Bench, kind: str) -> dict[str, Any]:
    """The step from shards against the same on a batch in memory."""
    command.say(f"{kind}: shards against tensors")
    jobs = {threads: bench.job(kind, loader_workers=threads) for threads in (0, 1)}
    training = Training(jobs[0], bench.device)
    streams = {threads: stream(job, bench.device) for threads, job in jobs.items()}
    still = next(streams[0])
    noise = torch.randint_like(still.inputs, 256)
    synthetic = Batch(noise, still.labels_b, still.index_b, still.global_size)

    def steps(source: Iterator[Batch]) -> measure.Call:
        def call() -> None:
            for batch in itertools.islice(source, bench.steps):
                training.step(batch)

        return call

    timings = measure.interleave(
        {
            "tensors": steps(itertools.repeat(synthetic)),
            "shards": steps(streams[0]),
            "shards, read ahead": steps(streams[1]),
        },
        bench.device,
        bench.repeats,
    )
    for each in streams.values():
        each.close()  # type: ignore[attr-defined]
    share = measure.ratios(timings["tensors"], timings["shards"])
    return {
        "kind": kind,
        "batch": still.global_size,
        "step_s": [value / bench.steps for value in measure.Spread.of(
            timings["tensors"].seconds).row()],
        "share": share.row(),
        "share_wall": {
            name: _wall_share(timings["tensors"], timings[name])
            for name in ("shards", "shards, read ahead")
        },
        "ok": share.median >= LEAST,
    }  # fmt: skip


def _wall_share(reference: measure.Timing, arm: measure.Timing) -> list[float]:
    pairs = zip(reference.wall, arm.wall, strict=True)
    return measure.Spread.of([a / b for a, b in pairs]).row()


def preset_codes(bench: Bench, name: str) -> dict[str, Any]:
    """Codes against pixels for the preset, on images of its data."""
    dataset = ShardDataset(bench.data, "train")
    images, labels = load_images(dataset, IMAGES)
    given = Options(max_steps=10**6)
    return against_pixels(bench, name, images, labels.tolist(), given, True)


def size_codes(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """The same for one of VAR's sizes."""
    size = SIZES[options.size]
    batch = options.batch or size.batch
    images = random_images(size, 4 * batch, torch.device("cpu"), options.seed)
    pixels = ((images + 1) * 127.5).to(torch.uint8)
    preset = replace(
        bench.preset, tokenizer=size.tokenizer(), transformer=size.transformer("markov")
    )
    own = replace(bench, preset=preset, steps=1)
    given = TransformerOptions(max_steps=10**6, batch_size=batch, precision="float32")
    return against_pixels(own, options.size, pixels, [0, 1] * (2 * batch), given, False)


def against_pixels(
    bench: Bench, name: str, images: Tensor, labels: list[int], given: Options, update: bool
) -> dict[str, Any]:
    """The transformer's step from stored codes, and from pixels with the encoder in it.

    Args:
        bench: what all measurements share.
        name: of the model.
        images: uint8 [n, 3, R, R], written as shards.
        labels: theirs.
        given: options of the training.
        update: with the optimizer's update.
    """
    command.say(f"{name}: codes against pixels")
    root = bench.scratch / name
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        for part in ("train", "val"):
            place = root / "tree" / part / str(label) / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(to_png(image))
    data, directory = root / "data", root / "tokenizer"
    manifest = prepare(source="folder", path=root / "tree", resolution=images.shape[-1], out=data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_tokenizer(Tokenizer(bench.preset.tokenizer).eval(), directory)
    job = make_job("transformer", bench.preset, data, root / "run", given, tokenizer=directory)
    (shard,) = manifest.splits["train"].shards
    encode_shard(
        Extraction(data=str(data), tokenizer=str(directory), device=bench.device.type),  # type: ignore[arg-type]
        "train", shard.name, Path(job.inputs.codes) / "train.safetensors",
    )  # fmt: skip
    content = {"train": {"num": shard.num, "shards": ["train.safetensors"]}}
    write_json(Path(job.inputs.codes) / "manifest.json", {"format": FORMAT, "splits": content})
    training = Training(job, bench.device, update=update)
    tokenizer = load_tokenizer(directory).to(bench.device)
    codes = stream(job, bench.device)
    stored = ImageData(job.dataset, batch_size=job.optim.batch_size)
    pixels = stream(job, bench.device, stored)
    still = next(stream(job, bench.device, stored))

    def encoded(batch: Batch) -> Batch:
        codes_BL = tokenizer.encode(to_float(batch.inputs))
        return Batch(codes_BL, batch.labels_b, batch.index_b, batch.global_size)

    def from_codes() -> None:
        for batch in itertools.islice(codes, bench.steps):
            training.step(batch)

    def from_pixels() -> None:
        for batch in itertools.islice(pixels, bench.steps):
            training.step(encoded(batch))

    def encoder() -> None:
        for _ in range(bench.steps):
            encoded(still)

    arms: dict[str, measure.Call] = {"pixels": from_pixels, "codes": from_codes, "encoder": encoder}
    timings = measure.interleave(arms, bench.device, bench.repeats)
    share = measure.ratios(timings["encoder"], timings["pixels"])
    left = measure.ratios(timings["codes"], timings["pixels"])
    return {
        "model": name,
        "batch": still.global_size,
        "update": update,
        "precision": training.config.precision,
        **{
            f"{arm}_s": [x / bench.steps for x in measure.Spread.of(timing.seconds).row()]
            for arm, timing in timings.items()
        },
        "speedup": measure.ratios(timings["pixels"], timings["codes"]).row(),
        "encoder_share": share.row(),
        "saved": 1 - left.median,
        "ok": 1 - left.median >= share.median - NOISE,
    }


def step_parts(bench: Bench) -> dict[str, Any]:
    """Where the time of the tokenizer's step goes, over one period of restarts."""
    command.say("parts of the tokenizer's step")
    job = bench.job("tokenizer", loader_workers=0)
    training = Training(job, bench.device)
    period = job.settings.loss.restart_every or 1
    taken = stream(job, bench.device)
    training.step(next(taken))  # the first call pays for what is set up once
    training.done = 0
    parts = Parts(bench.device)
    tokenizer = training.task.module.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    with (
        mock.patch.multiple(
            tokenizer,
            latent=parts.wrapped("encoder", tokenizer.latent),
            pixels=parts.wrapped("decoder", tokenizer.pixels),
        ),
        mock.patch("srdd.train.var.tokenizer.quantize", parts.wrapped("quantizer", quantize)),
    ):
        for _ in range(period):
            with parts.timed("data"):
                batch = next(taken)
            training.step(batch, parts)
    found = dict(parts.seconds)
    found["losses"] = found.pop("forward")
    total = sum(found.values())
    return {
        "batch": batch.global_size,
        "steps": period,
        "step_s": total / period,
        "shares": {part: found[part] / total for part in PARTS},
    }


def main(argv: list[str] | None = None) -> int:
    options = command.parser(__doc__)
    options.set_defaults(size="d16")
    options.add_argument("--data", type=Path, metavar="DIR", help="shards of the preset's images")
    options.add_argument("--preset", default="cifar10")
    options.add_argument("--batch", type=command.positive, help="of --size")
    options.add_argument("--measure", nargs="+", choices=MEASURES, default=MEASURES)
    options.add_argument("--repeats", type=command.positive, default=5)
    options.add_argument("--steps", type=command.positive, default=2, help="updates a timing")
    return command.main(options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
