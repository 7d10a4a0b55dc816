"""Parity with FoundationVision's VAR at full size, on random weights with open gates.

    python -m benchmarks.parity --var-repo DIR --size d16 --batch 1 --out parity.json

float32 throughout. Codes must be equal, numbers agree within 1e-4. The oracle of ``markov`` is the
official code with a block-diagonal bias, and with its cache switched off. Exits 1 where a bound is
exceeded.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import srdd
from benchmarks import command, official
from benchmarks.oracles import OfficialOracle, Oracle
from benchmarks.sizes import SIZES, Size
from benchmarks.weights import random_images, random_pipeline
from srdd import Pipeline, SamplerConfig
from srdd.errors import UserError
from srdd.var.masks import Mask

BOUND = 1e-4
MASKS: tuple[Mask, ...] = ("block_causal", "markov")


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: a largest absolute difference, or a number of codes that differ."""

    what: str
    mask: str
    value: float
    bound: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it holds; NaN does not."""
        return self.value <= self.bound


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare everything."""
    if options.var_repo is None:
        raise UserError(
            "parity needs a checkout of FoundationVision/VAR: --var-repo or SRDD_VAR_REPO"
        )
    device = command.device_of(options)
    size = SIZES[options.size]
    batch = options.batch or size.batch
    theirs = official.load(options.var_repo, size, random_pipeline(size, device, options.seed))
    pipelines = {mask: official.to_pipeline(theirs, size, mask) for mask in MASKS}
    checks = []
    oracle = OfficialOracle(theirs, size)
    for check in all_checks(oracle, size, pipelines, batch, options.cfg, options.seed):
        command.say(f"{check.what} {check.mask}")
        checks.append(check)
    return {
        "benchmark": "parity",
        "size": size.name,
        "batch": batch,
        "environment": command.environment(device),
        "checks": [{**asdict(check), "ok": check.ok} for check in checks],
        "ok": all(check.ok for check in checks),
    }


def all_checks(
    oracle: Oracle,
    size: Size,
    pipelines: dict[Mask, Pipeline],
    batch: int,
    cfgs: Sequence[float],
    seed: int = 0,
) -> Iterator[Check]:
    """Every comparison, one after the other, in float32 without TF32."""
    device = pipelines["markov"].transformer.pos_embed.device
    with torch.no_grad(), command.float32_exact():
        images = random_images(size, batch, device, seed)
        labels_B = torch.arange(batch, device=device) * 37 % size.num_classes
        codes_BL = oracle.codes(images)
        yield from tokenizer_checks(oracle, pipelines["markov"], images, codes_BL)
        yield from logits_checks(oracle, pipelines, labels_B, codes_BL)
        for mask in MASKS:
            for cfg in cfgs:
                yield from greedy_checks(oracle, mask, pipelines[mask], labels_B, cfg)


def gap(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference."""
    return (a - b).abs().max().item()


def tokenizer_checks(
    oracle: Oracle, pipeline: Pipeline, images: Tensor, codes_BL: Tensor
) -> Iterator[Check]:
    """Latents, codes, the transformer's input and reconstructions of some images."""
    ours, quantizer = pipeline.tokenizer, pipeline.transformer.quantizer
    latent = oracle.latent(images)
    yield Check("latents", "", gap(ours.latent(images), latent), BOUND, _size(latent))
    note = f"{codes_BL.numel()} codes, {len(codes_BL.unique())} of the book used"
    differ = (ours.encode(images) != codes_BL).sum().item()
    yield Check("codes", "", differ, 0, note)
    fed = gap(quantizer.teacher_input(codes_BL), oracle.fed(codes_BL))
    yield Check("transformer input", "", fed, BOUND)
    decoded = oracle.reconstruct(codes_BL)
    yield Check("reconstructions", "", gap(ours.decode(codes_BL), decoded), BOUND, _size(decoded))


def logits_checks(
    oracle: Oracle, pipelines: dict[Mask, Pipeline], labels_B: Tensor, codes_BL: Tensor
) -> Iterator[Check]:
    """Teacher-forced logits under both masks."""
    expected = {mask: oracle.logits(mask, labels_B, codes_BL) for mask in MASKS}
    apart = gap(expected["markov"], expected["block_causal"])
    note = f"{_size(expected['markov'])}; the masks differ by {apart:.2g}"
    for mask in MASKS:
        found = pipelines[mask].transformer(labels_B, codes_BL)
        yield Check("logits", mask, gap(found, expected[mask]), BOUND, note)


def greedy_checks(
    oracle: Oracle, mask: Mask, pipeline: Pipeline, labels_B: Tensor, cfg: float
) -> Iterator[Check]:
    """The likeliest codes of the whole loop, and the images they decode to."""
    expected = oracle.greedy(mask, labels_B, cfg)
    config = SamplerConfig(cfg=cfg, top_k=1)
    result = srdd.sample(pipeline, labels_B, config, torch.zeros_like(labels_B))
    wrong_BL = result.codes_BL != expected.codes_BL
    note = f"{wrong_BL.numel()} codes, smallest lead {expected.lead_BL.min().item():.2g}"
    if wrong_BL.any():
        first = int(wrong_BL.int().argmax(1).min())
        row = int(wrong_BL[:, first].int().argmax())
        note += f"; first flip at code {first}, lead {expected.lead_BL[row, first].item():.2g}"
    yield Check(f"greedy codes, cfg {cfg:g}", mask, int(wrong_BL.sum()), 0, note)
    yield Check(f"images, cfg {cfg:g}", mask, gap(result.images, expected.images), BOUND)


def _size(values: Tensor) -> str:
    return f"standard deviation {values.std().item():.2g}"


def main(argv: list[str] | None = None) -> int:
    options = command.parser(__doc__)
    options.add_argument("--batch", type=command.positive)
    options.add_argument("--cfg", type=float, nargs="+", default=[0.0, 1.5, 4.0])
    return command.main(options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
