"""One file of arrays, and trainings on it, one after the other, that can be stopped and resumed.

A stage's directory holds ``settings.json``, ``state.pt`` (all that resuming needs), ``curve.json``
(the logged steps) and ``result.json``. Everything is written whole or not at all.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import command
from srdd.errors import UserError
from srdd.json_files import read_json
from srdd.rng import hash_counters
from srdd.train.config import OptimConfig
from srdd.train.ema import finished_weights
from srdd.train.loop import Log, checkpoint_hook, fit
from srdd.train.task import Batch, Task
from srdd.unpickle import unpickle

_ORDER, _FLIP = 0x08DE9, 0xF11B  # streams of random numbers
_NEEDED = ("images", "labels", "held_out", "held_out_labels")


@dataclass(frozen=True, slots=True)
class Arrays:
    """Images uint8 [n, 3, R, R] and labels int64 [n], to train on and held out."""

    images: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    classes: tuple[str, ...]

    def to(self, device: torch.device) -> "Arrays":
        """All of it on a device, so that no step waits for a copy."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _NEEDED})

    @property
    def digest(self) -> str:
        """Names the content, on the CPU."""
        found = hashlib.sha256()
        for name in _NEEDED:
            found.update(getattr(self, name).numpy().tobytes())
        return found.hexdigest()[:16]


def load_arrays(path: Path, limit: int | None = None) -> Arrays:
    """Read an npz or a safetensors file; ``limit`` keeps so many images of each part.

    The images kept are spread evenly over the file, which may be sorted by class.

    Raises:
        UserError: it is missing, damaged, or its arrays are not as above.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a .npz or .safetensors file of images")
    try:
        if path.suffix == ".safetensors":
            found: dict[str, Any] = dict(load_file(path))
        else:
            with np.load(path) as arrays:
                found = {name: arrays[name] for name in arrays.files}
    except Exception:  # numpy and safetensors raise many kinds
        raise UserError(f"{path} is damaged, or not a .npz or .safetensors file") from None
    if missing := [name for name in _NEEDED if name not in found]:
        raise UserError(f"{path} lacks {', '.join(missing)}: see benchmarks/pack_images.py")
    tensors = {name: torch.as_tensor(found[name]) for name in _NEEDED}
    for images, labels in (("images", "labels"), ("held_out", "held_out_labels")):
        x, y = tensors[images], tensors[labels]
        if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] != 3 or len(x) != len(y):
            raise UserError(
                f"{path}: {images} must be uint8 [n, 3, R, R] with as many {labels}, got "
                f"{x.dtype} {list(x.shape)} with {len(y)}"
            )
        if limit is not None:
            kept = torch.linspace(0, len(x) - 1, min(limit, len(x))).long()
            tensors[images], tensors[labels] = x[kept], y[kept]
    count = int(tensors["labels"].max()) + 1
    names = found.get("classes", [str(i) for i in range(count)])
    labels_n = (tensors[name].long() for name in ("labels", "held_out_labels"))
    train, test = labels_n
    return Arrays(tensors["images"], train, tensors["held_out"], test, tuple(str(n) for n in names))


def batches(
    take: Callable[[Tensor, Tensor], Tensor], labels: Tensor, optim: OptimConfig, *, flip: bool
) -> Callable[[int], Iterator[Batch]]:
    """Global batches as a function of (seed, step): each epoch in an order of its own.

    Args:
        take: the inputs of samples (int64 [b]), and whether each is flipped (bool [b]).
        labels: int64 [n], on the device where everything stays.
        optim: batch size and seed.
        flip: whether half of the samples are, by (seed, step, sample).
    """
    size, device = optim.batch_size, labels.device
    per_epoch = len(labels) // size
    if not per_epoch:
        raise UserError(f"{len(labels)} images are fewer than a batch of {size}")
    samples = torch.arange(len(labels), device=device)

    def stream(step: int) -> Iterator[Batch]:
        while True:
            epoch, first = divmod(step, per_epoch)
            order = hash_counters(samples, optim.seed, epoch, _ORDER).argsort()
            for place in range(first, per_epoch):
                index_b = order[place * size : (place + 1) * size]
                flipped_b = (hash_counters(index_b, optim.seed, step, _FLIP) & 1).bool()
                inputs = take(index_b, flipped_b if flip else torch.zeros_like(flipped_b))
                yield Batch(inputs, labels[index_b], index_b, size)
                step += 1

    return stream


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole."""
    command.write_text(path, json.dumps(value, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A training in a directory.

    Raises:
        UserError: the directory holds one with other settings.
    """

    directory: Path
    settings: dict[str, Any]
    log_every: int
    checkpoint_every: int
    validate_every: int

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path, own = self.directory / "settings.json", json.loads(json.dumps(self.settings))
        if path.exists() and (other := read_json(path)) != own:
            changed = [k for k in own.keys() | other.keys() if own.get(k) != other.get(k)]
            raise UserError(
                f"{self.directory} holds a run with other settings ({', '.join(sorted(changed))}): "
                "give another --out or the old settings"
            )
        write_json(path, own)

    @property
    def result(self) -> dict[str, Any] | None:
        """What a finished stage found."""
        path = self.directory / "result.json"
        return dict(read_json(path)) if path.exists() else None

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Keep what was found; the stage is done."""
        write_json(self.directory / "result.json", result)
        return result

    def train(
        self,
        task: Task,
        optim: OptimConfig,
        stream: Callable[[int], Iterator[Batch]],
        validate: Callable[[], dict[str, float]],
        say: Callable[[str], None],
    ) -> dict[str, float]:
        """Train from where the directory stands; the task's module then has the finished weights.

        Returns:
            Images a second and TFLOP/s (products and convolutions that the model needs), medians
            over the logged intervals of this call; nothing where it was finished before.
        """
        state_path, curve_path = self.directory / "state.pt", self.directory / "curve.json"
        state: dict[str, Any] = {}
        if state_path.exists():
            state = unpickle(state_path, mapped=False)
        done = int(state.get("step", 0))
        curve = read_json(curve_path) if curve_path.exists() else []
        curve = [row for row in curve if row["step"] <= done]
        rates: list[float] = []
        clock = {"began": time.perf_counter(), "step": done}

        def restart(step: int) -> None:
            clock["began"], clock["step"] = time.perf_counter(), step

        def timed_validate() -> dict[str, float]:
            began = time.perf_counter()
            try:
                task.module.eval()
                return validate()
            finally:
                task.module.train()
                clock["began"] += time.perf_counter() - began

        def on_log(step: int, metrics: dict[str, float]) -> None:  # the loss was read: no wait
            seconds = time.perf_counter() - clock["began"]
            rate = (step - clock["step"]) * optim.batch_size / seconds
            rates.append(rate)
            curve.append({"step": step, **metrics, "images_per_s": rate})
            say(f"{self.directory.name} {step}/{optim.steps}: loss {metrics['loss']:.4f}, "
                f"{rate:.0f} images/s")  # fmt: skip
            restart(step)

        def on_checkpoint(step: int, new: dict[str, Any]) -> None:
            began = time.perf_counter()
            temporary = state_path.with_name(".state.pt.tmp")
            torch.save(new, temporary)
            temporary.replace(state_path)
            write_json(curve_path, curve)
            state.clear()
            state.update(new)
            clock["began"] += time.perf_counter() - began

        fit(
            task, optim, stream, resume=dict(state) or None,
            log=Log(
                write=on_log, every=self.log_every, validate=timed_validate,
                validate_every=self.validate_every,
            ),
            hooks=[checkpoint_hook(self.checkpoint_every, on_checkpoint)],
        )  # fmt: skip
        task.module.load_state_dict(finished_weights(state))
        task.module.eval()
        if not rates:
            return {}
        rate = sorted(rates)[len(rates) // 2]
        return {"images_per_s": rate, "tflops": rate * task.flops(optim.steps - 1) / 1e12}
