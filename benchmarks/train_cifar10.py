"""The whole training from one file of arrays, with torch, numpy and safetensors alone.

    python -m benchmarks.pack_images cifar-10 cifar10.npz
    python -m benchmarks.train_cifar10 cifar10.npz --out runs/cifar10 --device cuda

It is ``srdd train``'s own loop and the preset ``cifar10``: a classifier, whose features measure
FID; the tokenizer; codes of all images and of their mirror images; a transformer of each mask.
Everything lies on the device. The same command goes on where it was stopped, and only reports what
is finished. ``--out`` then holds

    report.json               arguments, hardware, and what each stage found
    classifier/ tokenizer/ markov/ block_causal/
                              settings.json, curve.json, result.json, and state.pt to resume
    tokenizer/model           a tokenizer's directory
    tokenizer/codes.safetensors
    <mask>/model              a pipeline's directory, for ``srdd sample`` and ``srdd serve``
    tokenizer/grid.png        held-out images above their reconstructions
    <mask>/grid.png           samples, a line a class in turn

A transformer's NLL stands beside the entropy of the train codes' frequencies, in all and by scale;
``margin`` is how far it lies below. FIDs are of the classifier's features, against the train
images: compare them with each other, and with that of the held-out images themselves.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import command
from benchmarks.stages import Arrays, Stage, batches, load_arrays, write_json
from srdd.errors import UserError
from srdd.generator import sample
from srdd.images import grid, png_bytes, to_float, to_uint8
from srdd.load import load_var
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.metrics.frechet import Gaussian
from srdd.presets import PRESETS, Preset, get_preset, var_size
from srdd.rng import image_seeds
from srdd.train.classifier import ClassifierTask
from srdd.train.config import OptimConfig
from srdd.train.var.held_out import (
    BATCH,
    reconstruct,
    tokenizer_quality,
    transformer_nll,
    unigram_entropy,
)
from srdd.train.var.tokenizer_task import TokenizerTask
from srdd.train.var.transformer_task import TransformerTask
from srdd.validation import to_dict
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline, load_tokenizer, save_pipeline, save_tokenizer
from srdd.var.tokenizer import Tokenizer

STAGES = ("classifier", "tokenizer", "markov", "block_causal")
SEED_IMAGES = 256  # whose latents seed the codebook
GRID = 40
DRAWN = 250  # images drawn at once


class Run:
    """What the stages share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = command.device_of(args)
        self.arrays = load_arrays(args.arrays, args.limit)
        self.preset = sized(get_preset(args.preset), args)
        side = self.preset.tokenizer.resolution
        if self.arrays.images.shape[-1] != side:
            raise UserError(
                f"the preset takes {side} px images, {args.arrays} holds "
                f"{self.arrays.images.shape[-1]} px ones"
            )
        self.data: Arrays = self.arrays.to(self.device)
        self.digest = self.arrays.digest

    def stage(self, name: str, optim: OptimConfig, **settings: Any) -> Stage:
        """A stage of these settings; those of the data are always among them."""
        settings = {key: to_dict(value) for key, value in {"optim": optim, **settings}.items()}
        return Stage(
            directory=self.args.out / name,
            settings={"data": self.digest, "flip": self.args.flip, **settings},
            log_every=self.args.log_every,
            checkpoint_every=self.args.checkpoint_every or self.preset.checkpoint_every,
            validate_every=self.args.validate_every,
        )

    def pixels(self, optim: OptimConfig, *, flip: bool) -> Any:
        """Batches of images."""

        def take(index_b: Tensor, flipped_b: Tensor) -> Tensor:
            x = self.data.images[index_b]
            return torch.where(flipped_b[:, None, None, None], x.flip(3), x)

        return batches(take, self.data.labels, optim, flip=flip)

    @torch.no_grad()
    def features(self, classifier: Classifier, images: Tensor) -> Tensor:
        """Of uint8 images [n, 3, R, R]: float32 [n, D]."""
        parts = images.split(BATCH)
        return torch.cat([classifier(to_float(x.to(self.device)))[0].cpu() for x in parts])


def sized(preset: Preset, args: argparse.Namespace) -> Preset:
    """The preset with what was given on the command line."""

    def optim(config: OptimConfig, steps: int | None, **more: Any) -> OptimConfig:
        given = {"steps": steps, "batch_size": args.batch_size, **more}
        given = {name: value for name, value in given.items() if value is not None}
        return replace(config, seed=args.seed, **given)

    transformer = preset.transformer
    return replace(
        preset,
        classifier_optim=optim(preset.classifier_optim, args.classifier_steps),
        tokenizer_optim=optim(preset.tokenizer_optim, args.tokenizer_steps),
        transformer_optim=optim(
            preset.transformer_optim, args.steps, lr=args.lr, ema=args.ema,
            precision=args.precision, compile=args.compile or None,
        ),
        transformer=var_size(transformer, args.depth) if args.depth is not None else transformer,
    )  # fmt: skip


def train_classifier(run: Run) -> tuple[Classifier, dict[str, Any]]:
    """The classifier, and its accuracy on the held-out images."""
    data, optim = run.data, run.preset.classifier_optim
    config = ClassifierConfig(
        num_classes=len(data.classes), resolution=run.preset.tokenizer.resolution
    )
    task = ClassifierTask(config, optim)
    task.module.to(run.device)

    @torch.no_grad()
    def validate() -> dict[str, float]:
        pairs = zip(data.held_out.split(BATCH), data.held_out_labels.split(BATCH), strict=True)
        hits = [task.classifier(to_float(x))[1].argmax(1) == y for x, y in pairs]
        return {"accuracy": float(torch.cat(hits).double().mean())}

    stage = run.stage("classifier", optim, model=config)
    stream = run.pixels(optim, flip=run.args.flip)
    speed = stage.train(task, optim, stream, validate, command.say)
    return task.classifier, stage.result or stage.finish({**validate(), **speed})


def train_tokenizer(run: Run, classifier: Classifier) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer as its directory gives it, and its quality on the held-out images."""
    preset, data, optim = run.preset, run.data, run.preset.tokenizer_optim
    stage = run.stage("tokenizer", optim, model=preset.tokenizer, loss=preset.tokenizer_loss)
    model = stage.directory / "model"
    if stage.result is None:
        task = TokenizerTask(preset.tokenizer, preset.tokenizer_loss, optim)
        task.module.to(run.device)
        spread = torch.linspace(0, len(data.images) - 1, min(SEED_IMAGES, len(data.images)))
        task.seed_codebook(data.images[spread.long().to(run.device)])

        def validate() -> dict[str, float]:
            codes_nL, seen = reconstruct(task.tokenizer, data.held_out)
            return tokenizer_quality(task.tokenizer, data.held_out, codes_nL, seen)

        stream = run.pixels(optim, flip=run.args.flip)
        speed = stage.train(task, optim, stream, validate, command.say)
        save_tokenizer(task.tokenizer, model)
        codes_nL, seen = reconstruct(task.tokenizer, data.held_out)
        found = tokenizer_quality(task.tokenizer, data.held_out, codes_nL, seen)
        real = Gaussian(run.features(classifier, data.held_out))
        found["rfid"] = real.frechet(run.features(classifier, seen))
        picks = torch.linspace(0, len(seen) - 1, min(GRID // 2, len(seen))).long()
        columns = max(1, len(picks) // 2)
        shown = [
            part
            for line in picks.split(columns)
            for part in (run.arrays.held_out[line], seen[line])
        ]
        picture = png_bytes(grid(torch.cat(shown), columns))
        (stage.directory / "grid.png").write_bytes(picture)
        stage.finish({**found, **speed})
    return load_tokenizer(model).to(run.device), stage.result or {}


@torch.no_grad()
def extract_codes(run: Run, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Codes uint16 of the train images and their mirror images, and of those held out.

    Returns:
        train [2 or 1, n, L] and held_out [m, L], on the CPU; made once a tokenizer.
    """
    path = run.args.out / "tokenizer" / "codes.safetensors"
    if path.exists():
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in ("train", "held_out")}

    def encode(images: Tensor) -> Tensor:
        parts = [tokenizer.encode(to_float(x)).cpu() for x in images.split(BATCH)]
        return torch.cat(parts).to(torch.uint16)

    views = [run.data.images, run.data.images.flip(3)] if run.args.flip else [run.data.images]
    codes = {
        "train": torch.stack([encode(view) for view in views]),
        "held_out": encode(run.data.held_out),
    }
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(codes, temporary)
    temporary.replace(path)
    return codes


def train_transformer(
    run: Run, mask: Any, tokenizer: Tokenizer, classifier: Classifier, codes: dict[str, Tensor]
) -> dict[str, Any]:
    """One mask's transformer: NLL against the codes' entropy, samples, FID."""
    preset, data, optim = run.preset, run.data, run.preset.transformer_optim
    config = replace(preset.transformer, mask=mask, num_classes=len(data.classes))
    stage = run.stage(mask, optim, model=config, loss=preset.transformer_loss)
    if stage.result is not None:
        return stage.result
    task = TransformerTask(
        config, preset.transformer_loss, optim, tokenizer, init_gate=preset.init_gate
    )
    task.module.to(run.device)
    views_VnL = codes["train"].to(torch.int32).to(run.device)  # few kernels take uint16

    def take(index_b: Tensor, flipped_b: Tensor) -> Tensor:
        return views_VnL[flipped_b.long(), index_b].long()

    stream = batches(take, data.labels, optim, flip=run.args.flip)
    validate = partial(transformer_nll, task.model, codes["held_out"], run.arrays.held_out_labels)
    speed = stage.train(task, optim, stream, validate, command.say)
    entropy = unigram_entropy(codes["train"].flatten(0, 1), config.schedule, config.vocab_size)
    nll = validate()
    margin = {
        key.replace("entropy", "margin"): value - nll[key.replace("entropy", "nll")]
        for key, value in entropy.items()
    }
    found = {**nll, **entropy, **margin, **speed}
    model = stage.directory / "model"
    sampler = SamplerConfig(cfg=run.args.cfg)
    save_pipeline(Pipeline(tokenizer, task.model, sampler, data.classes), model)
    pipeline = load_var(model)
    pipeline.to(run.device)
    began = time.perf_counter()
    drawn = draw(pipeline, max(run.args.samples, GRID), run.args.seed)
    found["samples_per_s"] = len(drawn) / (time.perf_counter() - began)
    (stage.directory / "grid.png").write_bytes(png_bytes(grid(drawn[:GRID], 10)))
    reference = Gaussian(run.features(classifier, data.images))
    if run.args.samples:
        found["fid"] = reference.frechet(run.features(classifier, drawn[: run.args.samples]))
        found["fid_samples"] = run.args.samples
    found["fid_held_out"] = reference.frechet(run.features(classifier, data.held_out))
    return stage.finish(found)


def draw(pipeline: Pipeline, num: int, seed: int) -> Tensor:
    """Images of all classes in turn: uint8 [num, 3, R, R], on the CPU."""
    labels_n = torch.arange(num) % len(pipeline.class_names)
    seeds_n = image_seeds(seed, 0, num)
    parts = zip(labels_n.split(DRAWN), seeds_n.split(DRAWN), strict=True)
    images = [sample(pipeline, labels, None, seeds).images for labels, seeds in parts]
    return torch.cat([to_uint8(x).cpu() for x in images])


def train(
    args: argparse.Namespace, on_stage: Callable[[str, dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """All stages asked for; ``on_stage`` gets each one's name and what it found."""
    torch.set_float32_matmul_precision("high")  # TF32 where the device has it
    run = Run(args)
    report: dict[str, Any] = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "environment": command.environment(run.device),
        "stages": {},
    }
    stages = report["stages"]

    def note(name: str, result: dict[str, Any]) -> None:
        if args.peak_tflops and "tflops" in result:
            result["mfu"] = result["tflops"] / args.peak_tflops
        stages[name] = result
        write_json(args.out / "report.json", report)
        command.say(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in result.items()))
        if on_stage is not None:
            on_stage(name, result)

    classifier, result = train_classifier(run)
    note("classifier", result)
    if {"tokenizer", "markov", "block_causal"} & set(args.stages):
        tokenizer, result = train_tokenizer(run, classifier)
        note("tokenizer", result)
    masks = [name for name in args.stages if name in ("markov", "block_causal")]
    if masks:
        codes = extract_codes(run, tokenizer)
    for mask in masks:
        note(mask, train_transformer(run, mask, tokenizer, classifier, codes))
    return report


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(
        prog="train_cifar10", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    count = command.positive
    parser.add_argument("arrays", type=Path, help="npz or safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--preset", choices=PRESETS, default="cifar10")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES),
                        help="with those that they need")  # fmt: skip
    parser.add_argument("--depth", type=count, help="of the transformers, by VAR's rule")
    parser.add_argument("--steps", type=count, help="of the transformers")
    parser.add_argument("--tokenizer-steps", type=count)
    parser.add_argument("--classifier-steps", type=count)
    parser.add_argument("--batch-size", type=count, help="of every stage")
    parser.add_argument("--lr", type=float, help="of the transformers, like the next four")
    parser.add_argument("--ema", type=float, help="decay of the weights' average; 0: none")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="torch.compile of the blocks")
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance of the samples")
    parser.add_argument("--samples", type=int, default=10_000, help="for FID; 0: a grid alone")
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")
    parser.add_argument("--limit", type=count, help="images of each part, for a trial")
    parser.add_argument("--log-every", type=count, default=50)
    parser.add_argument("--checkpoint-every", type=count)
    parser.add_argument("--validate-every", type=int, default=0, help="steps; 0: at the end")
    parser.add_argument("--peak-tflops", type=float, help="of the device: MFU is taken of it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=count, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        train(args)
    except (UserError, FloatingPointError) as error:
        command.say(f"train_cifar10: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
