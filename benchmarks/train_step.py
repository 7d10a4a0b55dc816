"""One training step of the transformer: VAR's, from pixels, against ours, from stored codes.

    python -m benchmarks.train_step --var-repo DIR --size d8 --out train_d8.json
    python -m benchmarks.train_step --var-repo DIR --size d16 --repeats 5 --out train_d16.json
    python -m benchmarks.train_step --var-repo DIR --size d16 --device cuda --dtype bf16 --batch 64

VAR's step is its trainer's: the frozen encoder and quantiser, the input built from the codes, the
transformer under a dense bias, cross-entropy, backward. Ours reads uint16 codes and attends scale
by scale. ``official-codes`` is VAR's step without the encoder, so that the two savings show apart.
Without ``--var-repo`` the plain loop's dense step stands in. Label dropout and stochastic depth
are off, so that loss and gradients can be compared in the same run (float32, within 1e-5; weights
with gates of order one; ``markov`` against a block-diagonal bias). Exits 1 if they differ.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import command, measure, official, plain_var
from benchmarks.command import DTYPES
from benchmarks.sizes import SIZES, Size
from benchmarks.weights import random_images, random_pipeline, with_mask
from srdd import Pipeline
from srdd.train.config import TransformerLossConfig
from srdd.train.loop import clear_gradients
from srdd.train.task import Batch
from srdd.train.var.transformer import TransformerLoss
from srdd.var.masks import Mask
from srdd.var.official.names import from_var

BOUND = 1e-5
MASKS: tuple[Mask, ...] = ("block_causal", "markov")


@dataclass(frozen=True, slots=True)
class Step:
    """A loss to differentiate, and the weights it trains, under our names."""

    loss: Callable[[], Tensor]
    weights: dict[str, nn.Parameter]
    ours: bool = False  # gradients are cleared as srdd.train.loop does it, else dropped as by VAR

    def clear(self) -> None:
        """Before a backward pass."""
        if self.ours:
            clear_gradients(self.weights.values())
            return
        for weight in self.weights.values():
            weight.grad = None

    def run(self) -> Tensor:
        """Forward and backward; gradients are left in place."""
        self.clear()
        loss = self.loss()
        torch.autograd.backward(loss)
        return loss.detach()


@dataclass(frozen=True, slots=True)
class Data:
    """A batch."""

    images: Tensor
    labels_B: Tensor
    stored_BL: Tensor  # uint16, as in a code shard


@dataclass(frozen=True, slots=True)
class Bench:
    """The models of a run and its batch."""

    size: Size
    pipelines: dict[Mask, Pipeline]
    data: Data
    theirs: official.Official | None

    @classmethod
    def make(
        cls, size: Size, device: torch.device, batch: int, seed: int, var_repo: Path | None
    ) -> "Bench":
        """Random weights, random images and their codes."""
        causal = random_pipeline(size, device, seed)
        pipelines: dict[Mask, Pipeline] = {"block_causal": causal}
        pipelines["markov"] = with_mask(causal, size, "markov")
        images = random_images(size, batch, device, seed)
        labels_B = torch.arange(batch, device=device) * 37 % size.num_classes
        codes_BL = pipelines["markov"].tokenizer.encode(images)
        theirs = None if var_repo is None else official.load(var_repo, size, causal)
        return cls(size, pipelines, Data(images, labels_B, codes_BL.to(torch.uint16)), theirs)

    @property
    def reference(self) -> str:
        """The name of the first arm."""
        return "plain" if self.theirs is None else "official"

    def checks(self) -> list[dict[str, Any]]:
        """Loss and gradients of ours beside the reference's, in float32 without TF32."""
        checks = []
        with command.float32_exact():
            for mask in MASKS:
                cut: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
                if self.theirs is not None:
                    cut = official.masked(self.theirs, self.size, mask)
                with cut:
                    reference = self._reference(mask, from_pixels=False)
                    ours = our_step(self.pipelines[mask], self.data)
                    checks.append(compare(mask, self.reference, reference, ours))
        return checks

    def steps(self) -> dict[str, Callable[[], Step]]:
        """The arms, each made when it is called: the reference first."""
        return {
            self.reference: lambda: self._reference("block_causal", from_pixels=True),
            f"{self.reference}-codes": lambda: self._reference("block_causal", from_pixels=False),
            "causal": lambda: our_step(self.pipelines["block_causal"], self.data),
            "markov": lambda: our_step(self.pipelines["markov"], self.data),
        }

    def _reference(self, mask: Mask, from_pixels: bool) -> Step:
        return reference_step(self.theirs, self.size, self.pipelines, self.data, mask, from_pixels)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare gradients, then time the steps."""
    device = command.device_of(options)
    size = SIZES[options.size]
    batch = options.batch or size.batch
    bench = Bench.make(size, device, batch, options.seed, options.var_repo)
    command.say("parity")
    checks = bench.checks()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    arms = {
        arm: timed(make(), device, options.dtype, options.optimizer)
        for arm, make in bench.steps().items()
    }
    command.say(f"{len(arms)} steps, {options.repeats} rounds")
    timings = measure.interleave(arms, device, options.repeats)
    name = bench.reference
    return {
        "benchmark": "train_step",
        "size": size.name,
        "batch": batch,
        "dtype": options.dtype,
        "optimizer": options.optimizer,
        "repeats": options.repeats,
        "reference": name,
        "environment": command.environment(device),
        "parity": checks,
        "rows": [
            {"arm": arm, **measure.timing_row(timing, timings[name])}
            for arm, timing in timings.items()
        ],
        "ok": all(check["ok"] for check in checks),
    }


def our_step(pipeline: Pipeline, data: Data) -> Step:
    """Ours: codes from the store, one attention a scale, the training module's own loss."""
    model = pipeline.transformer.train()
    for weight_name, weight in model.named_parameters():
        weight.requires_grad_(not weight_name.startswith("quantizer."))
    module = TransformerLoss(model, TransformerLossConfig(label_drop=0.0), seed=0)
    index_B = torch.arange(len(data.labels_B), device=data.labels_B.device)

    def loss() -> Tensor:
        codes_BL = data.stored_BL.long()
        total: Tensor = module(Batch(codes_BL, data.labels_B, index_B, len(codes_BL)), 0)[0]
        return total

    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return Step(loss, trained, ours=True)


def reference_step(
    theirs: official.Official | None,
    size: Size,
    pipelines: dict[Mask, Pipeline],
    data: Data,
    mask: Mask,
    from_pixels: bool,
) -> Step:
    """VAR's step, or the plain one: the whole sequence under a dense bias."""
    if theirs is not None:
        return official_step(theirs, size, data, from_pixels)
    return plain_step(pipelines[mask], data, mask, from_pixels)


def official_step(theirs: official.Official, size: Size, data: Data, from_pixels: bool) -> Step:
    """VAR's own modules, called as its trainer calls them."""
    vae, var = theirs.vae, theirs.var
    var.train().requires_grad_(True)

    def loss() -> Tensor:
        with torch.autocast(data.images.device.type, enabled=False):  # as its trainer
            if from_pixels:
                codes = vae.img_to_idxBl(data.images)
            else:
                codes = official.split(size, data.stored_BL.long())
            fed = vae.quantize.idxBl_to_var_input(codes)
        logits_BLV = var(data.labels_B, fed)
        return F.cross_entropy(logits_BLV.flatten(0, 1), torch.cat(codes, 1).flatten())

    trained = {}
    for name, parameter in var.named_parameters():
        for own in from_var({name: parameter.detach()}, {}):
            trained[own] = parameter
    return Step(loss, trained)


def plain_step(pipeline: Pipeline, data: Data, mask: Mask, from_pixels: bool) -> Step:
    """The plain loop's modules: our weights, copied, under a dense bias."""
    model = plain_var.plain(pipeline)
    trained = {
        name: nn.Parameter(weight.clone())
        for name, weight in model.weights.items()
        if not name.startswith("quantizer.")
    }
    frozen = {n: w for n, w in model.weights.items() if n.startswith("quantizer.")}
    weights: dict[str, Tensor] = {**frozen, **trained}
    own = plain_var.PlainVar(model.config, model.tokenizer, weights, model.vae)
    quantizer = pipeline.tokenizer.quantizer

    def loss() -> Tensor:
        with torch.no_grad(), torch.autocast(data.images.device.type, enabled=False):
            codes_BL = data.stored_BL.long()
            if from_pixels:
                codes_BL = quantizer.encode(plain_var.latent(own, data.images))
            fed = quantizer.teacher_input(codes_BL)
        logits_BLV = plain_var.teacher_logits(own, data.labels_B, fed, mask)
        return F.cross_entropy(logits_BLV.flatten(0, 1), codes_BL.flatten())

    return Step(loss, trained)


def compare(mask: Mask, against: str, reference: Step, ours: Step) -> dict[str, Any]:
    """Loss and all gradients of two steps."""
    expected, found = reference.run().item(), ours.run().item()
    missing = sorted(set(reference.weights) ^ set(ours.weights))
    assert not missing, missing
    largest, squares, total = 0.0, 0.0, 0.0
    for name, weight in ours.weights.items():
        mine, other = weight.grad, reference.weights[name].grad
        assert mine is not None, name
        assert other is not None, name
        difference = mine - other.view_as(mine)
        largest = max(largest, difference.abs().max().item())
        squares += difference.double().square().sum().item()
        total += other.double().square().sum().item()
    for step in (reference, ours):
        for weight in step.weights.values():
            weight.grad = None
    return {
        "mask": mask,
        "against": against,
        "loss": expected,
        "loss_difference": abs(found - expected),
        "gradient_difference": largest,
        "gradient_relative": (squares / total) ** 0.5,
        "bound": BOUND,
        "ok": abs(found - expected) <= BOUND and largest <= BOUND,
    }


def timed(step: Step, device: torch.device, dtype: str, update: bool) -> measure.Call:
    """A step as it is timed: in a dtype (autocast below fp32), with or without AdamW's update."""
    optimizer = None
    if update:
        trained = list(step.weights.values())
        optimizer = torch.optim.AdamW(trained, lr=1e-8, betas=(0.9, 0.95), fused=True)

    def call() -> None:
        with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32"):
            step.clear()
            loss = step.loss()
        torch.autograd.backward(loss)
        if optimizer is not None:
            optimizer.step()

    return call


def main(argv: list[str] | None = None) -> int:
    options = command.parser(__doc__)
    options.add_argument("--batch", type=command.positive)
    options.add_argument("--repeats", type=command.positive, default=5)
    options.add_argument("--dtype", choices=DTYPES, default="fp32", help="below fp32: autocast")
    options.add_argument("--optimizer", action="store_true", help="AdamW's update too")
    return command.main(options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
