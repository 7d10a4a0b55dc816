"""Parity with FoundationVision's VAR at full size, on random weights with open gates.

    python -m benchmarks.parity --var-repo DIR --size d16 --batch 1 --out parity.json

float32 throughout. Codes must be equal, numbers agree within 1e-4. The oracle of ``markov`` is the
official code with a block-diagonal bias, and with its cache switched off. Exits 1 where a bound is
exceeded.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import srdd
from benchmarks import command, official
from benchmarks.sizes import SIZES, Size
from benchmarks.weights import random_images, random_pipeline
from srdd import Pipeline, SamplerConfig
from srdd.errors import UserError
from srdd.masks import Mask

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
    with torch.no_grad(), command.float32_exact():
        theirs = official.load(options.var_repo, size, random_pipeline(size, device, options.seed))
        pipelines = {mask: official.to_pipeline(theirs, size, mask) for mask in MASKS}
        images = random_images(size, batch, device, options.seed)
        labels_B = torch.arange(batch, device=device) * 37 % size.num_classes
        command.say("tokenizer")
        checks = tokenizer_checks(theirs, size, pipelines["markov"], images)
        codes_BL = torch.cat(theirs.vae.img_to_idxBl(images), 1)
        command.say("logits")
        checks += logits_checks(theirs, size, pipelines, labels_B, codes_BL)
        for mask in MASKS:
            for cfg in options.cfg:
                command.say(f"greedy {mask} cfg {cfg:g}")
                checks += greedy_checks(theirs, size, mask, pipelines[mask], labels_B, cfg)
    return {
        "benchmark": "parity",
        "size": size.name,
        "batch": batch,
        "environment": command.environment(device),
        "checks": [{**asdict(check), "ok": check.ok} for check in checks],
        "ok": all(check.ok for check in checks),
    }


def gap(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference."""
    return (a - b).abs().max().item()


def tokenizer_checks(
    theirs: official.Official, size: Size, pipeline: Pipeline, images: Tensor
) -> list[Check]:
    """Latents, codes, the transformer's input and reconstructions of some images."""
    vae, ours = theirs.vae, pipeline.tokenizer
    latent = vae.quant_conv(vae.encoder(images))
    codes = vae.img_to_idxBl(images)
    codes_BL = torch.cat(codes, 1)
    used = len(codes_BL.unique())
    differ = (ours.encode(images) != codes_BL).sum().item()
    decoded = vae.idxBl_to_img(codes, same_shape=True, last_one=True)
    fed = pipeline.transformer.quantizer.teacher_input(codes_BL)
    return [
        Check("latents", "", gap(ours.latent(images), latent), BOUND, _size(latent)),
        Check("codes", "", differ, 0, f"{codes_BL.numel()} codes, {used} of the book used"),
        Check("transformer input", "", gap(fed, vae.quantize.idxBl_to_var_input(codes)), BOUND),
        Check("reconstructions", "", gap(ours.decode(codes_BL), decoded), BOUND, _size(decoded)),
    ]


def logits_checks(
    theirs: official.Official,
    size: Size,
    pipelines: dict[Mask, Pipeline],
    labels_B: Tensor,
    codes_BL: Tensor,
) -> list[Check]:
    """Teacher-forced logits under both masks."""
    fed = theirs.vae.quantize.idxBl_to_var_input(official.split(size, codes_BL))
    expected = {}
    for mask in MASKS:
        with official.masked(theirs, size, mask):
            expected[mask] = theirs.var(labels_B, fed)
    apart = gap(expected["markov"], expected["block_causal"])
    note = f"{_size(expected['markov'])}; the masks differ by {apart:.2g}"
    return [
        Check("logits", mask, gap(model(labels_B, codes_BL), expected[mask]), BOUND, note)
        for mask, model in ((mask, pipelines[mask].transformer) for mask in MASKS)
    ]


def greedy_checks(
    theirs: official.Official,
    size: Size,
    mask: Mask,
    pipeline: Pipeline,
    labels_B: Tensor,
    cfg: float,
) -> list[Check]:
    """The likeliest codes of the whole loop, and the images they decode to."""
    with official.masked(theirs, size, mask):
        expected = official.greedy(theirs, labels_B, cfg)
    config = SamplerConfig(cfg=cfg, top_k=1)
    result = srdd.sample(pipeline, labels_B, config, torch.zeros_like(labels_B))
    wrong_BL = result.codes_BL != expected.codes_BL
    note = f"{wrong_BL.numel()} codes, smallest lead {expected.lead_BL.min().item():.2g}"
    if wrong_BL.any():
        first = int(wrong_BL.int().argmax(1).min())
        row = int(wrong_BL[:, first].int().argmax())
        note += f"; first flip at code {first}, lead {expected.lead_BL[row, first].item():.2g}"
    return [
        Check(f"greedy codes, cfg {cfg:g}", mask, int(wrong_BL.sum()), 0, note),
        Check(f"images, cfg {cfg:g}", mask, gap(result.images, expected.images), BOUND),
    ]


def _size(values: Tensor) -> str:
    return f"standard deviation {values.std().item():.2g}"


def main(argv: list[str] | None = None) -> int:
    options = command.parser(__doc__)
    options.add_argument("--batch", type=command.positive)
    options.add_argument("--cfg", type=float, nargs="+", default=[0.0, 1.5, 4.0])
    return command.main(options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
