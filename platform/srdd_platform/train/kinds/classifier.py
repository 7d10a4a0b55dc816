"""The small classifier whose features measure FID."""

from srdd.metrics.classifier import ClassifierConfig
from srdd.train.classifier import ClassifierTask
from srdd_platform.data.augment import pixel_settings
from srdd_platform.evaluation.extractors import check_classes
from srdd_platform.train.kind import Inputs, Kind, Request, Settings


def plan(request: Request) -> tuple[Settings, Inputs]:
    """The settings of a classifier for the data's classes.

    Raises:
        UserError: there is one class, or random crops have nothing to crop.
    """
    manifest = request.manifest
    check_classes(len(manifest.classes), request.data)
    model = ClassifierConfig(num_classes=len(manifest.classes), resolution=manifest.resolution)
    optim = request.options.apply(request.preset.classifier_optim)
    more = pixel_settings(request.options, manifest)
    return Settings(model=model, optim=optim, more=more), Inputs()


def build(settings: Settings, inputs: Inputs) -> ClassifierTask:
    """The task, freshly initialised."""
    return ClassifierTask(settings.model, settings.optim)


CLASSIFIER = Kind(name="classifier", model=ClassifierConfig, plan=plan, build=build)
