"""Whether images and a pipeline belong together."""

from pathlib import Path

from srdd.errors import UserError
from srdd.var.pipeline import Pipeline
from srdd_platform.data.manifest import Manifest


def check_data(
    pipeline: Pipeline, model: Path, manifest: Manifest, data: object, *, classes: bool = True
) -> None:
    """Refuse images that are not a pipeline's own kind.

    Args:
        pipeline: what draws such images.
        model: what messages call it.
        manifest: of the images.
        data: what messages call them.
        classes: whether there must be as many classes.

    Raises:
        UserError: the images have another size, or other classes.
    """
    side = pipeline.tokenizer.config.resolution
    if manifest.resolution != side:
        raise UserError(
            f"{model} draws {side} px images, {data} holds {manifest.resolution} px ones"
        )
    if classes and len(manifest.classes) != len(pipeline.class_names):
        raise UserError(
            f"{model} knows {len(pipeline.class_names)} classes, {data} holds "
            f"{len(manifest.classes)}"
        )
