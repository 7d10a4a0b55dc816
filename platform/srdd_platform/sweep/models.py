"""What a sweep works on: given, or a preset's, prepared and trained where it is missing."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd.var.config import SamplerConfig
from srdd.var.masks import PAPER_MASKS
from srdd.var.pipeline import Pipeline
from srdd_platform.core.runs import CONFIG, model_dir
from srdd_platform.data.code_places import codes_dir
from srdd_platform.data.codes import encode
from srdd_platform.data.manifest import MANIFEST, Manifest
from srdd_platform.data.shards import prepare
from srdd_platform.evaluation.checks import check_data
from srdd_platform.evaluation.extractors import check_classes, load_extractor
from srdd_platform.evaluation.generate import Load
from srdd_platform.evaluation.protocol import MIN_IMAGES
from srdd_platform.sweep.axes import Models, Source, make_models, train_masks
from srdd_platform.sweep.options import Request
from srdd_platform.sweep.trainer import Trainer
from srdd_platform.train.job import make_job

MASKS = PAPER_MASKS  # of a preset: the first is searched, and the other compared with it

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a sweep works on."""

    models: Models  # those searched: pipeline or run directories by a value of each axis
    others: tuple[Path, ...]  # models that references are measured on as well
    data: Path
    weights: Path  # the extractor's
    made_from: tuple[Path, ...] = ()  # models and tokenizers that the models come from

    @property
    def files(self) -> list[Path]:
        """The files that all of it was read from."""
        runs = [*self.models.values(), *self.others, self.weights, *self.made_from]
        configs = [run / CONFIG for run in runs if (run / CONFIG).exists()]
        models = [path for run in runs for path in [model_dir(run), *model_dir(run).rglob("*")]]
        return [self.data / MANIFEST, *configs, *models]


def plain_settings(request: Request, load: Load) -> Any:
    """The sampler's settings by default: of the model given, or of a preset's."""
    given = request.args.model
    return SamplerConfig() if given is None else type(load(given).sampler)()


def given_inputs(request: Request, trainer: Trainer, load: Load) -> Inputs:
    """The model and images of ``--model`` and ``--data``, with a classifier if none is given.

    Raises:
        UserError: they do not fit together, or the sweep needs models that are not given.
    """
    args, out = request.args, request.directory
    assert args.model is not None
    assert args.data is not None
    generator, manifest = load(args.model), Manifest.load(args.data)
    check_data(generator.card, args.model, manifest, args.data)
    if args.extractor == "classifier":
        check_classes(len(manifest.classes), str(args.data))
    held_out = manifest.splits["val"].num if "val" in manifest.splits else 0
    if held_out < MIN_IMAGES:
        raise UserError(
            f"{args.data} holds {held_out} held-out images; the reference rows need at least "
            f"{MIN_IMAGES}"
        )
    source = Source(folder=out.parent, data=args.data, load=load, trainer=trainer)
    models = make_models(request.sweep.models, args.model, source)
    weights = args.weights or out.parent / f"{out.name}-classifier"
    if args.weights is not None:
        load_extractor(args.extractor, args.weights)  # refuses what would fail in every trial
    else:
        preset = trainer.preset
        if isinstance(generator, Pipeline):  # the images have its side, whatever the preset's is
            preset = replace(preset, tokenizer=generator.tokenizer.config)
        elif generator.card.resolution != preset.tokenizer.resolution:
            raise UserError(
                f"{args.model} draws {generator.card.resolution} px images, and the preset "
                f"{args.preset} has a classifier for {preset.tokenizer.resolution} px ones: give "
                "one for these images (--weights)"
            )
        job = make_job("classifier", preset, args.data, weights, trainer.options)
        trainer.train([job], "a classifier on the data, as the feature extractor")
    return Inputs(
        models=models, others=(), data=args.data, weights=weights, made_from=(args.model,)
    )


def preset_inputs(request: Request, trainer: Trainer, load: Load) -> Inputs:
    """A preset's images and models, prepared and trained where they are missing.

    Raises:
        UserError: what is there has other settings, or a training cannot go on.
    """
    name, axes = request.args.preset, request.sweep.models
    root, preset, options = Path("runs") / name, trainer.preset, trainer.options
    data, tokenizer, classifier = root / "data", root / "tokenizer", root / "classifier"
    if not (data / MANIFEST).exists():
        logger.info("Preparing images: %s, %s px", name, preset.tokenizer.resolution)
    prepare(source=name, resolution=preset.tokenizer.resolution, out=data)
    jobs = [
        make_job("tokenizer", preset, data, tokenizer, options),
        make_job("classifier", preset, data, classifier, options),
    ]
    trainer.train(jobs, "the tokenizer, and the classifier whose features measure FID")
    if not (codes_dir(data, tokenizer) / "manifest.json").exists():
        logger.info("Extracting codes, once for all masks")
        trainer.cluster.connect()
        encode(data, tokenizer)
    source = Source(folder=root, data=data, load=load, trainer=trainer, tokenizer=tokenizer)
    trained = train_masks(root, axes.get("mask", MASKS), source)
    return Inputs(
        models=make_models(axes, trained[0], source),
        others=() if "mask" in axes else tuple(trained[1:]),
        data=data, weights=classifier, made_from=(tokenizer, *trained),
    )  # fmt: skip
